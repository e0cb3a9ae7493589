"""The preflight passes where a run can start, and names everything that is wrong where it cannot."""

from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from torch import nn

from bundle.checkpoints.file import network_settings, write_checkpoint
from bundle.checkpoints.state import TrainingState
from bundle.data.volumes.phantom import write_phantom
from bundle.engines.optimizers import build_optimizer
from bundle.networks.vqgan import build_vqgan
from scripts.preflight import main

ROOT = Path(__file__).resolve().parents[2]
TINY = {"preset": "lite", "num_embeddings": 64, "patch_size": [24, 24, 24], "num_workers": 0, "device": "cpu"}


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Exit code and lines of the preflight of a tiny base run of two patients."""
    monkeypatch.chdir(ROOT)
    for name in ("a", "b"):
        write_phantom(tmp_path / "data" / name / "ct.nii.gz", (28, 28, 24), np.eye(4), seed=1)

    def call(config="['configs/train.yaml']", **overrides):
        paths = {"dataset_dir": tmp_path / "data", "output_dir": tmp_path / "out"}
        words = [f"--{name}={value}" for name, value in (TINY | paths | overrides).items()]
        code = main(["--config_file", config, *words])
        return code, capsys.readouterr().out

    return call


def errors_of(told):
    return [line for line in told.splitlines() if line.startswith("error   ")]


def test_a_sound_run_passes_every_check_shows_its_memory_and_leaves_no_trace(run, tmp_path):
    code, told = run()

    assert code == 0, told
    names = "config settings data LPIPS folder start output device ranks run memory".split()
    assert [name for name in names if f"{name}: " not in told] == []
    assert "1 training volume of 1 patient, 1 validation volume of 1 patient" in told
    assert "memory: not known, since a CPU does not tell" in told
    assert told.count("none of 2 patients falls to validation") == 1  # the split is made several times
    assert told.endswith("this run can start\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_everything_that_is_wrong_is_told_at_once(run, tmp_path):
    (tmp_path / "out" / "checkpoints").mkdir(parents=True)
    (tmp_path / "out" / "checkpoints" / "last.pt").write_bytes(b"")
    code, told = run(
        dataset_dir=tmp_path / "nothing",
        init_from=tmp_path / "lost.pt",
        perceptual_weight=0.1,
        perceptual_weights_path=tmp_path / "lost.pth",
        batch_size=0,
        l1_weight=-1,
        device="cuda:7",
    )

    assert code == 1
    names = [error.split()[1].rstrip(":") for error in errors_of(told)]
    assert names == ["settings", "settings", "settings", "data", "LPIPS", "folder", "start"]
    batch = "`batch_size` must be a whole number from 1, got 0; set e.g. --batch_size 1"
    assert f"{batch} (checks below take batch_size 4)" in told
    assert "`l1_weight` must be a number from 0, got -1" in told
    assert "--perceptual_weights_path FILE" in told and "lost.pt" in told
    assert "Traceback" not in told and "ok      settings" not in told


def test_a_warning_that_names_a_file_is_printable(run, tmp_path):
    image = nib.Nifti1Image(
        np.random.default_rng(0).integers(-1000, 900, (28, 28, 24)).astype(np.int16), None
    )
    image.header["qform_code"] = image.header["sform_code"] = 0
    nib.save(image, tmp_path / "data" / "a" / "ct\x1b]0;owned\x07.nii.gz")

    code, told = run()

    assert code == 0, told
    assert "ct\\x1b]0;owned\\x07.nii.gz: states no orientation" in told
    assert "\x1b" not in told and "\x07" not in told


def test_a_device_that_torch_does_not_know_is_told(run):
    code, told = run(device="gpu")
    assert code == 1 and "error   settings: `device` must be cpu, or cuda:N of a GPU that torch sees" in told


def test_auto_passes_over_damage_without_moving_a_file(run, tmp_path):
    folder = tmp_path / "out" / "checkpoints"
    network = build_vqgan("lite", "ema", 64)
    optimizer = build_optimizer(network, 1e-4)
    settings = network_settings("lite", "ema", 64, -1000, 1000)
    content = TrainingState(network, settings, nn.ModuleDict(), {"generator": optimizer}).state_dict(
        SimpleNamespace(state=SimpleNamespace(iteration=2, epoch_length=2000, max_epochs=30), extras={})
    )
    write_checkpoint(folder / "previous_1.pt", content)
    (folder / "last.pt").write_bytes(b"torn")
    (folder / ".unfinished_0123abcd_last_new.pt").write_bytes(b"torn too")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    code, told = run(resume_from_checkpoint="auto")

    assert code == 0, told
    assert f"start: from {folder / 'previous_1.pt'}" in told
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out"]
    (folder / "previous_1.pt").write_bytes(b"torn")
    code, told = run(resume_from_checkpoint="auto")
    assert code == 1 and "no checkpoint to resume, none can be read here (last.pt, previous_1.pt)" in told


def test_an_unknown_id_is_told_with_the_nearest_one(run):
    code, told = run(learning_rte=1.0)
    assert code == 1 and "`learning_rte` (did you mean `learning_rate`" in told


@pytest.mark.parametrize(
    ("name", "value"), [("keep_last", 0), ("nonfinite_policy", "hope"), ("tile_size", 6), ("val_interval", 0)]
)
def test_what_only_the_whole_run_would_refuse_is_told(run, name, value):
    code, told = run(**{name: value})
    (error,) = errors_of(told)
    assert code == 1 and f": `{name}` must" in error


def test_an_override_of_another_kind_is_told(run):
    code, told = run(max_epochs="ten")
    assert code == 1
    assert errors_of(told) == [
        "error   settings: `max_epochs` must be a whole number from 1, got 'ten'; "
        "set e.g. --max_epochs 1 (checks below take max_epochs 30)"
    ]


def test_a_config_that_does_not_train_is_told(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    code = main(["--config_file", "configs/inference.yaml"])
    assert code == 1 and "configs/inference.yaml: no training config" in capsys.readouterr().out


def test_a_config_that_does_not_exist_is_told(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    code = main(["--config_file", "configs/trian.yaml"])
    assert code == 1 and "error   config: configs/trian.yaml: no such config file" in capsys.readouterr().out


def test_help_needs_no_config(capsys):
    assert main(["--help"]) == 0
    assert "python -m scripts.preflight" in capsys.readouterr().out
