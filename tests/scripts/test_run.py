import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FRONT_DOOR = Path(__file__).resolve().parents[2] / "scripts" / "run.py"
CONFIG = """
bundle_root: .
output_dir: out
max_epochs: 5
run:
- _target_: bundle.engines.settings.check_settings
- {_target_: bundle.run.record.start_run, output_dir: '@output_dir', settings: {root: '@bundle_root'}}
- {_target_: bundle.run.record.finish_run, output_dir: '@output_dir', figures: {root: '@bundle_root'}}
"""


@pytest.fixture
def elsewhere(tmp_path):
    (tmp_path / "mine.yaml").write_text(CONFIG, encoding="utf-8")
    return tmp_path


def run_front_door(folder, *words):
    command = [sys.executable, str(FRONT_DOOR), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=300
    )


def test_a_run_from_another_folder_writes_there_and_finds_the_bundle(elsewhere):
    done = run_front_door(elsewhere, "--config_file", "mine.yaml", "--max_epochs", 2)

    assert done.returncode == 0, done.stderr
    record = json.loads((elsewhere / "out" / "run.json").read_text(encoding="utf-8"))
    assert record["config"]["max_epochs"] == 2
    assert record["figures"]["root"] == str(FRONT_DOOR.parent.parent)


def test_an_unknown_id_is_refused_before_monai_starts(elsewhere):
    done = run_front_door(elsewhere, "--config_file", "mine.yaml", "--max_epoch", 2)

    assert done.returncode != 0
    message = "error: override must name an id of mine.yaml, got `max_epoch` (did you mean `max_epochs`?)\n"
    assert done.stderr.endswith(message)
    assert "Traceback" not in done.stderr
    assert "input summary" not in done.stdout
    assert not (elsewhere / "out").exists()


def test_help_tells_how_to_use_it_without_loading_torch(elsewhere):
    done = run_front_door(elsewhere, "--help")

    assert done.returncode == 0
    assert "python -m scripts.run --config_file configs/train.yaml" in done.stdout
