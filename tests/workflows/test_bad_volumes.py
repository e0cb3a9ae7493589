"""Volumes that cannot be used: a message that names each, an exit code, and nothing written."""

import gzip
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
HU = np.random.default_rng(0).integers(-1000, 1000, (28, 28, 24)).astype(np.int16)


def save(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(voxels, None)
    image.header.set_data_dtype(voxels.dtype)
    image.set_sform(affine, code="scanner") if np.isfinite(affine).all() else _write_affine(image, affine)
    nib.save(image, path)
    return path


def _write_affine(image: nib.Nifti1Image, affine: np.ndarray) -> None:
    image.header["sform_code"] = 1
    for row, name in zip(affine, ("srow_x", "srow_y", "srow_z"), strict=False):
        image.header[name] = row


def not_nifti(path):
    path.write_bytes(b"GIF89a, renamed by somebody")


def truncated(path):
    save(path, HU)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def flat(path):
    save(path, HU[..., 0])


def colour(path):
    save(path, np.zeros(HU.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")]))


def several(path):
    save(path, np.stack([HU, HU], axis=-1))


def nan_affine(path):
    save(path, HU, np.diag([np.nan, 1.0, 1.0, 1.0]))


def infinite_affine(path):
    save(path, HU, np.diag([1.0, np.inf, 1.0, 1.0]))


FILES = {
    not_nifti: "is not a readable NIfTI file",
    truncated: "truncated",
    flat: "must hold a 3D volume, got the 2D shape (28, 28",
    colour: "must hold one number per voxel, got RGB colours",
    several: "must hold one volume, got 2 (shape (28, 28, 24, 2))",
    nan_affine: "its affine holds NaN or infinite numbers",
    infinite_affine: "its affine holds NaN or infinite numbers",
}


@pytest.fixture(scope="module")
def bad_files(dataset, tmp_path_factory):
    """One good volume and every unusable one."""
    folder = tmp_path_factory.mktemp("bad")
    shutil.copytree(dataset / "p0", folder / "good")
    for make in FILES:
        (folder / make.__name__).mkdir()
        make(folder / make.__name__ / "ct.nii.gz")
    return folder


@pytest.mark.parametrize("workflow", ["base", "inference"])
def test_every_unusable_file_is_named_at_once_with_what_is_wrong(
    python, bad_files, checkpoint, out, workflow
):
    model = {"ckpt_path": checkpoint} if workflow == "inference" else {}

    done = python.run(workflow, dataset_dir=bad_files, output_dir=out, **model)

    reasons = [f"{bad_files / make.__name__ / 'ct.nii.gz'}: {reason}" for make, reason in FILES.items()]
    reasons[1] = f"{bad_files / 'truncated' / 'ct.nii.gz'}: "
    done.expect_refusal(*reasons, output_dir=out)
    assert "7 of 8 volumes cannot be used" in done.output
    assert str(bad_files / "good") not in done.message


@pytest.mark.parametrize("workflow", ["base", "inference"])
@pytest.mark.parametrize("voxel", [np.nan, np.inf])
def test_voxels_that_are_no_numbers_are_refused_with_their_file(
    python, checkpoint, tmp_path, out, workflow, voxel
):
    voxels = HU.astype(np.float32)
    voxels[3, 4, 5] = voxel
    path = save(tmp_path / "data" / "p1" / "ct.nii.gz", voxels)
    model = {"ckpt_path": checkpoint} if workflow == "inference" else {"allow_shared_patients": True}

    done = python.run(workflow, dataset_dir=tmp_path / "data", output_dir=out, **model)

    assert done.code != 0
    assert done.last_line.startswith(f"error: {path}: holds 1 NaN or infinite voxels; replace them")
    assert "Traceback" not in done.output
    assert "iteration 1" not in done.output
    assert not list(tmp_path.rglob("*.pt"))
    assert not list(out.rglob("*.nii*"))


def test_damage_that_only_reading_finds_is_refused_with_the_file(python, checkpoint, tmp_path, out):
    path = save(tmp_path / "ct.nii.gz", HU)
    packed = bytearray(path.read_bytes())
    packed[len(packed) // 2 : len(packed) // 2 + 64] = bytes(64)
    path.write_bytes(packed)
    assert gzip.open(path).read(348)  # the header can still be read

    done = python.run("inference", dataset_dir=path, output_dir=out, ckpt_path=checkpoint)

    assert done.code != 0
    assert "error: " in done.output and "Traceback" not in done.output
    assert done.last_line.strip().startswith(f"{path}: is truncated or damaged")
    assert not list(out.rglob("*.nii*"))


@pytest.mark.parametrize("workflow", ["base", "inference"])
def test_a_missing_or_empty_data_folder_is_named(python, checkpoint, tmp_path, out, workflow):
    model = {"ckpt_path": checkpoint} if workflow == "inference" else {}
    (tmp_path / "empty").mkdir()
    for name, reason in {"none": "no such file or folder", "empty": "holds no volume"}.items():
        done = python.run(workflow, dataset_dir=tmp_path / name, output_dir=out, **model)
        done.expect_refusal(f"error: {tmp_path / name}: {reason}", output_dir=out)


def test_axes_of_one_are_dropped_and_a_volume_smaller_than_a_patch_is_padded_with_a_warning(
    python, tmp_path, out
):
    save(tmp_path / "leading.nii.gz", HU[None])
    small = save(tmp_path / "trailing.nii.gz", HU[:, :, :20, None])
    lists = {"training": ["leading.nii.gz", "trailing.nii.gz"], "validation": ["leading.nii.gz"]}
    (tmp_path / "datalist.json").write_text(json.dumps(lists), encoding="utf-8")

    done = python.run(
        "base", dataset_dir=tmp_path / "datalist.json", output_dir=out, allow_shared_patients=True
    )

    done.expect_success()
    log = (out / "training.log").read_text(encoding="utf-8")
    assert f"{small}: its (28, 28, 20) voxels are fewer than a patch of (24, 24, 24); it is padded" in log
