"""configs/evaluate.yaml as a user types it: what it writes, and what its exit code tells."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml


def save(path, voxels):
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)


@pytest.fixture
def pairs(python, tmp_path):
    voxels = np.full((32, 28, 9), -1000, np.int16)
    voxels[4:28, 4:24] = 40
    save(tmp_path / "a.nii.gz", voxels + np.random.default_rng(0).integers(-20, 20, voxels.shape, np.int16))
    save(tmp_path / "short.nii.gz", voxels[..., 1:])

    def evaluate(*names):
        table = tmp_path / "pairs.csv"
        table.write_text("original,reconstruction\n" + "".join(f"a.nii.gz,{name}.nii.gz\n" for name in names))
        words = ["--pairs", str(table), "--output_dir", str(tmp_path / "out")]
        return python("monai.bundle", "run", "--config_file", "configs/evaluate.yaml", *words)

    return evaluate


def test_pairs_are_evaluated_and_the_exit_code_is_0(pairs, tmp_path):
    done = pairs("a")
    assert done.code == 0, done.output[-2000:]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert summary["figures"]["pairs"]["whole"]["psnr"]["mean"] == "inf"
    record = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    assert record["status"] == "finished" and record["figures"]["evaluated"] == 1


def test_two_evaluations_in_one_folder_are_refused():
    """Each would overwrite the other's tables; `start_run` locks what is not shared."""
    config = Path(__file__).resolve().parents[2] / "configs" / "evaluate.yaml"
    steps = yaml.safe_load(config.read_text(encoding="utf-8"))["run"]
    (start,) = (step for step in steps if isinstance(step, dict) and "start_run" in step["_target_"])
    assert "shared" not in start


def test_a_refused_volume_is_counted_and_the_exit_code_is_3(pairs, tmp_path):
    done = pairs("a", "short")
    assert done.code == 3, done.output[-2000:]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert summary["counts"]["evaluated"] == summary["counts"]["refused"] == 1
    assert "must have one shape" in summary["refused"][0]["reason"]
