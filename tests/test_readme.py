"""Every command of the README and of the guides is run or checked.

They run under their own words in a copy of the bundle: placeholders become files there, smoke.yaml and a few
iterations are merged on top. What they write lies where the README says, below the copy.
"""

import ast
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from bundle.checkpoints.file import INSTALLED_MODEL
from bundle.data.volumes.phantom import write_phantom
from tests.guide import GUIDE, ROOT, TEXTS, commands_in

COMMANDS = commands_in(GUIDE)
RANDOM_WEIGHTS = "random_vgg16.pth"
LAUNCHER = "scripts/train_with_discriminator.sh"
RUN = "python -m monai.bundle run"
WORKFLOW = (
    RUN,
    LAUNCHER,
    *(f"python -m scripts.{name}" for name in ("run", "preflight", "prepare", "inspect")),
    *(f"python -m scripts.{name}" for name in ("reconstruct", "install")),
)
SETUP = ("make", "python3 -m venv", ". .venv", "pip", "python -m scripts.demo", "python -m pytest")
ENDLESS = ("tail", "tensorboard", "monailabel start_server", "curl")  # the last two: make test-label
BASE_RUN = f"{RUN} --config_file configs/train.yaml --dataset_dir DIR"
ALL_RUNS = [line for line in COMMANDS if line.startswith(WORKFLOW)]
RUNS = [line for line in ALL_RUNS if line != BASE_RUN]  # the others go on from what it leaves
BY_HAND = next(line for line in RUNS if line.startswith(RUN) and "--init_from" in line)
ENCODE = next(line for line in RUNS if "configs/encode.yaml" in line)
DECODE = next(line for line in RUNS if "configs/decode.yaml" in line)
INFERENCE = next(line for line in RUNS if "configs/inference.yaml" in line)
PREPARE = "python -m scripts.prepare DIR --output STORE"  # starts processes that look for its module
AS_PROCESS = (BASE_RUN, BY_HAND, INFERENCE, PREPARE, f"{LAUNCHER} --dataset_dir DIR")  # with imports and all

AXES = ("axial", "coronal", "sagittal")
BASE, DISC = "outputs/vqgan_patches", "outputs/vqgan_patches_with_disc"
PLACEHOLDERS = {
    "FILE": f"{BASE}/checkpoints/last.pt",
    "CHECKPOINT": f"{BASE}/checkpoints/last.pt",
    "CHECKPOINT2": f"{BASE}/checkpoints/best_1.pt",
    "VOLUME": "DIR/p0/ct.nii.gz",
}
FEW = {"max_epochs": 1, "epoch_length": 2, "patch_size": [24, 24, 24], "discriminator_iter_start": 1}
FEWER = {"video_gan_weight": 0}  # 11 of 14 M parameters of the discriminators; the real processes have them
PROMISED = "checkpoints/last.pt checkpoints/best_1.pt training.log metrics.csv tensorboard pictures run.json"


def words_of(line: str) -> list[str]:
    return [PLACEHOLDERS.get(word, word) for word in shlex.split(line, comments=True)]


def for_two_cores(words: list[str], **few: object) -> list[str]:
    """smoke.yaml on top of the listed configs, and settings that take seconds."""
    at = words.index("--config_file") + 1
    files = ast.literal_eval(words[at]) if words[at].startswith("[") else [words[at]]
    if "train" in words[at] or "--ckpt_path" in words:  # the model that ships has its own number
        few["num_embeddings"] = 64
    few |= FEW if "train" in words[at] else {}
    if "--resume_from_checkpoint" in words:
        few["max_epochs"] = 2
    if "--perceptual_weights_path" in words:
        few["perceptual_weight"] = 0.1  # what the file is for; smoke.yaml turns it off
    given = {word.removeprefix("--") for word in words}
    more = [part for name, value in few.items() if name not in given for part in (f"--{name}", str(value))]
    return [*words[:at], str([*files, "configs/smoke.yaml"]), *words[at + 1 :], *more]


class Clone:
    """A copy of the bundle with data, a warm Python in it, and what the first command of the README left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for room in ("bundle", "configs", "scripts", "transforms"):
            shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "metadata.json", folder)
        self.take_models()
        (folder / "my.yaml").write_text("log_interval: 1\n", encoding="utf-8")
        for n in range(3):
            path = folder / "DIR" / f"p{n}" / "ct.nii.gz"
            write_phantom(path, (32, 28, 24), np.diag([1.0, 1.0, 2.0, 1.0]), seed=n)
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        server = [sys.executable, str(ROOT / "tests" / "warm_python.py")]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8"}
        self.warm = subprocess.Popen(server, cwd=folder, env=self.environment, **pipes)

    def take_models(self) -> None:
        """Puts in place what ships, whatever other models lie beside it here."""
        (self.folder / "models").mkdir()
        shutil.copy(INSTALLED_MODEL, self.folder / "models")

    def keep_base_run(self) -> None:
        """Sets aside what the README's first command leaves, for those that go on from it."""
        self.run(BASE_RUN)
        (self.folder / "outputs").rename(self.folder / "base_outputs")

    def reset(self, line: str) -> None:
        """Leaves the output of the base run only, and only to those commands that go on from it."""
        for name in ("outputs", "models", "OUT"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        self.take_models()
        if f"{BASE}/" in " ".join(words_of(line)) or line.startswith(LAUNCHER):
            shutil.copytree(self.folder / "base_outputs", self.folder / "outputs")
        if line == DECODE and not (self.folder / "CODES").exists():
            self.run(ENCODE)

    def run(self, line: str) -> None:
        """Runs one command of the README to its end."""
        words = [RANDOM_WEIGHTS if word == "vgg16-397923af.pth" else word for word in words_of(line)]
        if line.startswith(LAUNCHER):
            words = self.launch(words, line in AS_PROCESS)
        elif "--config_file" in words:
            words = for_two_cores(words, **({} if line in AS_PROCESS or not is_adversarial(line) else FEWER))
        if line in AS_PROCESS:
            self.process(words)
        else:
            self.in_fork(words[2], words[3:])

    def launch(self, words: list[str], as_process: bool) -> list[str]:
        """The launcher's own words: as they come from it, or with a process of its own, for the real one."""
        told = self.folder / "told"
        stub = self.folder / "stub"
        stub.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" >{told}\necho epoch 1 iteration 1\nsleep 0.5\n")
        stub.chmod(0o755)
        self.process(words, PYTHON=str(stub))
        command = ["python", *told.read_text(encoding="utf-8").splitlines()]
        if not as_process:
            return for_two_cores(command, **FEWER)
        tiny = for_two_cores(command)
        at = tiny.index("--config_file")
        return [*words, *tiny[at : at + 2], *tiny[len(command) :]]

    def process(self, words: list[str], **environment: str) -> None:
        words = [sys.executable if word == "python" else word for word in words]
        environment = {"PYTHON": sys.executable, **environment}
        both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8", "timeout": 300}
        done = subprocess.run(words, cwd=self.folder, env=self.environment | environment, **both)
        assert done.returncode == 0, done.stdout[-3000:]

    def in_fork(self, module: str, words: list[str]) -> None:
        output = self.folder / "output.txt"
        command = {"module": module, "words": words, "environment": {}, "folder": str(self.folder)}
        command |= {"output": str(output), "ranks": 1, "port": 0}
        assert self.warm.stdin is not None and self.warm.stdout is not None
        print(json.dumps(command), file=self.warm.stdin, flush=True)
        codes = json.loads(self.warm.stdout.readline())
        assert codes == [0], Path(f"{output}.0").read_text(encoding="utf-8")[-3000:]


@pytest.fixture(scope="module")
def clone(tmp_path_factory, write_dicom):
    """Has a file of random LPIPS weights; under torchvision's name its hash would be asked for."""
    clone = Clone(tmp_path_factory.mktemp("readme") / "clone")
    write_dicom(clone.folder / "SERIES", np.zeros((12, 16, 20), np.int16))
    features = torchvision.models.vgg16(weights=None).features.state_dict()
    weights = {f"features.{name}": tensor for name, tensor in features.items()}
    torch.save(weights, clone.folder / RANDOM_WEIGHTS)
    clone.keep_base_run()
    yield clone
    clone.warm.communicate()


def is_adversarial(line: str) -> bool:
    return "train_with_discriminator" in line


def results(line: str) -> list[str]:
    """What the README promises of a command, relative to the repo's root."""
    words = words_of(line)
    if "scripts.prepare" in words:
        return ["STORE/datalist.json", "STORE/prepare_report.csv", "STORE/volumes"]
    if "scripts.preflight" in words or "scripts.inspect" in words:
        return words[words.index("--csv") + 1 :] if "--csv" in words else []  # the exit code is the result
    if "scripts.install" in words:
        return ["models/model.pt"]
    if "scripts.reconstruct" in words:
        files = ["ct_recon.nii.gz", "ct_figures.json", "ct_picture.png", *(f"ct_{axis}.mp4" for axis in AXES)]
        return [f"OUT/{name}" for name in files + ["compare/ct_recon.nii.gz"] * ("--compare" in words)]
    if "dicom" in words:
        return ["OUT/SERIES_recon/0001.dcm"]
    if "configs/encode.yaml" in words:
        return [f"CODES/p{n}/ct_codes.npz" for n in range(3)]
    if "configs/inference.yaml" in words or "configs/decode.yaml" in words:
        return [f"OUT/p{n}/ct_recon.nii.gz" for n in range(3)]
    return [f"{DISC if is_adversarial(line) else BASE}/{name}" for name in PROMISED.split()]


@pytest.mark.parametrize("line", RUNS)
def test_a_command_does_what_the_readme_says(clone, line):
    clone.reset(line)

    clone.run(line)

    assert [name for name in results(line) if not (clone.folder / name).exists()] == []


def test_the_first_command_leaves_the_promised_files(clone):
    kept = clone.folder / "base_outputs"

    paths = [kept.parent / name.replace("outputs", kept.name) for name in results(BASE_RUN)]
    assert [path for path in paths if not path.exists()] == []


def test_every_command_is_one_that_this_file_runs_or_checks():
    known = (*WORKFLOW, *SETUP, *ENDLESS)

    assert set(AS_PROCESS) <= set(ALL_RUNS)
    assert [line for line in COMMANDS if not line.startswith(known)] == []


@pytest.mark.parametrize("prefix", SETUP + ENDLESS)
def test_set_up_and_endless_commands_are_there(prefix):
    assert any(line.startswith(prefix) for line in COMMANDS)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?:^|`)make ([a-z-]+)", GUIDE, re.MULTILINE))))
def test_make_knows_the_target(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize(
    "line", [line for line in COMMANDS if line.startswith(("python -m scripts.", "python -m pytest"))]
)
def test_a_module_that_is_called_exists(line):
    assert importlib.util.find_spec(words_of(line)[2]) is not None


def test_the_extra_that_pip_installs_exists():
    (line,) = (line for line in COMMANDS if line.startswith("pip"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    (extra,) = re.findall(r"\.\[(\w+)\]", line)
    assert extra in project["optional-dependencies"]


def test_the_followed_log_is_the_one_that_training_writes(clone):
    (line,) = (line for line in COMMANDS if line.startswith("tail"))
    folder, name = words_of(line)[-1].rsplit("/", 1)

    assert folder in (BASE, DISC)
    assert (clone.folder / "base_outputs" / Path(BASE).name / name).read_text(encoding="utf-8")


def test_tensorboard_is_pointed_at_a_folder_above_both_runs():
    (line,) = (line for line in COMMANDS if line.startswith("tensorboard"))

    assert {Path(run).parent for run in (BASE, DISC)} == {Path(words_of(line)[-1])}


def test_the_readme_is_read_in_minutes():
    assert len(TEXTS["README.md"].encode()) <= 10_000
