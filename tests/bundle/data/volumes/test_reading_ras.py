"""Volumes turned to right, anterior and superior: every orientation gives the same voxels, in whole HU."""

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from bundle.data.volumes import formats
from bundle.data.volumes.formats import VolumeError
from bundle.data.volumes.reading import read_ras

SHAPE, SPACING_MM = (24, 20, 12), (0.5, 0.75, 2.0)
AFFINE = np.diag([*SPACING_MM, 1.0])
AFFINE[:3, 3] = -30, 5, 100
VOXELS = np.random.default_rng(5).integers(-900, 900, SHAPE).astype(np.int16)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "SRA", "PIL"])
def test_files_of_every_orientation_give_the_same_volume(codes, tmp_path):
    turned = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    stored = nib.Nifti1Image(apply_orientation(VOXELS, turned), AFFINE @ inv_ornt_aff(turned, SHAPE))
    nib.save(stored, tmp_path / "scan.nii.gz")
    volume = read_ras(tmp_path / "scan.nii.gz")
    assert np.array_equal(volume.voxels, VOXELS) and volume.voxels.flags.c_contiguous
    assert volume.spacing_mm == pytest.approx(SPACING_MM)
    assert volume.affine == pytest.approx(AFFINE)


def test_an_oblique_file_is_turned_to_the_nearest_axes_and_not_resampled(tmp_path):
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2]])
    nib.save(nib.Nifti1Image(VOXELS, affine), tmp_path / "oblique.nii")
    volume = read_ras(tmp_path / "oblique.nii")
    assert np.array_equal(volume.voxels, VOXELS[::-1, ::-1])
    assert volume.spacing_mm == pytest.approx(SPACING_MM)
    last = np.array([SHAPE[0] - 1, SHAPE[1] - 1, 0, 1])
    assert volume.affine[:, 3] == pytest.approx(affine @ last)


def test_fractions_are_rounded_and_what_int16_cannot_hold_is_clipped(tmp_path):
    voxels = VOXELS.astype(np.float32)
    voxels[0, 0, :4] = -1000.6, 0.4, 40_000, -40_000
    nib.save(nib.Nifti1Image(voxels, AFFINE), tmp_path / "float.nii")
    read = read_ras(tmp_path / "float.nii").voxels
    assert read.dtype == np.int16
    assert read[0, 0, :4].tolist() == [-1001, 0, 32_767, -32_768]
    assert np.array_equal(read[1:], VOXELS[1:])


def test_a_copy_that_does_not_fit_into_memory_is_refused(tmp_path, monkeypatch):
    nib.save(nib.Nifti1Image(VOXELS, AFFINE), tmp_path / "scan.nii")
    free = iter([2 * VOXELS.nbytes, VOXELS.nbytes - 1])
    monkeypatch.setattr(formats, "free_memory_bytes", lambda: next(free))
    with pytest.raises(VolumeError, match="scan.nii: 24 x 20 x 12 voxels take") as refused:
        read_ras(tmp_path / "scan.nii")
    assert refused.value.code == "out_of_memory"
