import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / "scripts" / "train_with_discriminator.sh"
CONFIG = """
dataset_dir: null
output_dir: null
init_from: null
max_epochs: 5
run:
- _target_: bundle.engines.settings.check_settings
- {_target_: bundle.run.record.start_run, output_dir: '@output_dir'}
"""


@pytest.fixture
def workplace(tmp_path):
    """A folder of a user: data, a base checkpoint, and stand-ins for the interpreter."""
    (tmp_path / "data").mkdir()
    (tmp_path / "base.pt").touch()
    (tmp_path / "tiny.yaml").write_text(CONFIG, encoding="utf-8")
    for name, script in {
        "tell": 'printf "%s\\n" "$PWD" "$@"',
        "die": "echo Loading; echo 'error: no GPU' >&2; exit 3",
        "train": "echo 'epoch 1 iteration 1  train/recon_loss 0.5'; exec sleep 60",
    }.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        path.chmod(0o755)
    return tmp_path


def launch(workplace, *words, python="tell", **environment):
    python = sys.executable if python == "real" else str(workplace / python)
    inherited = {name: value for name, value in os.environ.items() if name != "DATASET_DIR"}
    return subprocess.run(
        [str(LAUNCHER), *words],
        cwd=workplace,
        env={**inherited, "PYTHON": python, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )


OWN = ["configs/train.yaml", "configs/train_with_discriminator.yaml"]


def told(done, configs=()):
    assert done.returncode == 0, done.stderr
    folder, *words = done.stdout.splitlines()
    assert words[:3] == ["-m", "scripts.run", "--config_file"]
    assert ast.literal_eval(words[3]) == [*OWN, *map(str, configs)]
    return folder, dict(zip(words[4::2], words[5::2], strict=True))


SMOKE = ROOT / "configs" / "smoke.yaml"


@pytest.mark.parametrize(
    ("words", "added"),
    [
        (["--config_file", "['configs/train.yaml','configs/smoke.yaml']"], [SMOKE]),
        (["--config_file", "configs/train.yaml,tiny.yaml"], ["tiny.yaml"]),
        (["--config_file", f"{ROOT}/scripts/../configs/train.yaml"], []),
        (["--config_file=it's a, b.yaml"], ["it's a, b.yaml"]),
        (["--smoke", "--config_file", "tiny.yaml"], [SMOKE, "tiny.yaml"]),
        (["-c", "configs/train.yaml"], []),
        (["-c=tiny.yaml", "-config_file", "configs/train.yaml"], ["tiny.yaml"]),
        (["--config_file", "tiny.yaml", "--smoke", "--config-file", "tiny.yaml"], [SMOKE, "tiny.yaml"]),
    ],
)
def test_config_files_come_on_top_of_the_launcher_s_own_and_none_is_repeated(workplace, words, added):
    (workplace / "it's a, b.yaml").touch()

    done = launch(workplace, "fresh", *words, DATASET_DIR="data")

    _, overrides = told(done, [workplace.resolve() / name for name in added])
    assert list(overrides) == ["--dataset_dir", "--output_dir"]


def test_a_config_file_that_does_not_exist_is_named(workplace):
    done = launch(workplace, "fresh", "--config_file", "tinny.yaml", DATASET_DIR="data")

    assert done.returncode != 0
    assert done.stderr.startswith("error: tinny.yaml: no such config file")


def test_checkpoint_and_paths_are_those_of_the_folder_where_it_was_called(workplace):
    done = launch(workplace, "base.pt", "--dataset-dir=data", "--output_dir", "out", "--max_patients", "30")

    folder, overrides = told(done)
    assert folder == str(ROOT)
    assert overrides["--init_from"] == str(workplace / "base.pt")
    assert overrides["--dataset_dir"] == str(workplace / "data")
    assert overrides["--output_dir"] == str(workplace / "out")
    assert overrides["--max_patients"] == "30"
    _, overrides = told(
        launch(workplace, "base.pt", "-dataset_dir", "data", "--args_file=a.yaml", "--cache_dir", "c")
    )
    assert overrides["-dataset_dir"] == str(workplace / "data")
    assert overrides["--args_file"] == str(workplace / "a.yaml")
    assert overrides["--cache_dir"] == str(workplace / "c")


def test_fresh_starts_without_a_checkpoint_and_with_the_default_output_folder(workplace):
    _, overrides = told(launch(workplace, "fresh", DATASET_DIR="data"))

    assert overrides["--dataset_dir"] == str(workplace / "data")
    assert overrides["--output_dir"] == str(ROOT / "outputs" / "vqgan_patches_with_disc")
    assert "--init_from" not in overrides


@pytest.mark.parametrize("checkpoint", ["last.pt", "auto"])
def test_resuming_does_not_start_from_the_base_checkpoint_too(workplace, checkpoint):
    _, overrides = told(launch(workplace, "--resume_from_checkpoint", checkpoint, DATASET_DIR="data"))

    path = "auto" if checkpoint == "auto" else str(workplace / checkpoint)
    assert overrides["--resume_from_checkpoint"] == path
    assert "--init_from" not in overrides


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fresh"], "error: no data: give --dataset_dir DIR, or set DATASET_DIR"),
        (["fresh", "--dataset_dir", "none"], "/none: no such folder or file"),
        (["gone.pt", "--dataset_dir", "data"], "/gone.pt: no such checkpoint; train the base model first"),
        (
            ["fresh", "--dataset_dir", "data", "configs/train.yaml"],
            "configs/train.yaml: is no option; write --id",
        ),
        (["fresh", "--dataset_dir", "data", "-", "config_file"], "-: is no option; write --id value"),
        (["fresh", "--dataset_dir", "data", "--", "--trace"], "--: is no option; write --id value"),
    ],
)
def test_what_is_missing_is_named_before_python_starts(workplace, words, message):
    done = launch(workplace, *words)

    assert done.returncode != 0
    assert message in done.stderr
    assert done.stdout == ""


def test_a_failed_start_in_the_background_is_reported_with_its_last_lines(workplace):
    done = launch(
        workplace, "--background", "fresh", "--dataset_dir", "data", "--output_dir", "out", python="die"
    )

    assert done.returncode == 3
    assert "the start FAILED with exit code 3" in done.stderr
    assert done.stderr.endswith("Loading\nerror: no GPU\n")
    assert "has started" not in done.stdout


def test_background_training_is_reported_as_started_once_it_trains_and_is_not_started_twice(workplace):
    words = ["--background", "fresh", "--dataset_dir", "data", "--output_dir", "out"]
    done = launch(workplace, *words, python="train")
    pid = int((workplace / "out.pid").read_text(encoding="utf-8"))

    try:
        again = launch(workplace, *words, python="train")
        os.kill(pid, 0)
    finally:
        os.kill(pid, signal.SIGTERM)

    assert done.returncode == 0, done.stderr
    assert f"PID {pid}" in done.stdout
    assert "training has started" in done.stdout
    assert again.returncode != 0
    assert f"is alive, PID {pid}" in again.stderr


def test_a_refused_override_reaches_the_caller_through_the_launcher(workplace):
    words = [
        "fresh",
        "--dataset_dir",
        "data",
        "--output_dir",
        "out",
    ]

    done = launch(workplace, "--background", *words, "--maxepochs", "3", python="real")

    assert done.returncode == 1
    assert done.stderr.endswith("got `maxepochs` (did you mean `max_epochs`?)\n")
    assert not (workplace / "out").exists()


def test_a_word_that_steers_a_terminal_is_repeated_without_its_control_characters(workplace):
    done = launch(workplace, "gone\x1b]0;owned\x07\nerror: none.pt", "--dataset_dir", "data")

    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {workplace}/gone?]0;owned??error: none.pt: no such checkpoint")
    assert len(done.stderr.splitlines()) == 1
