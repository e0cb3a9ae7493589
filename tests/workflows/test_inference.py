"""Reconstruction of whole files: the geometry of the input, and what the network makes of it by hand."""

import nibabel as nib
import numpy as np
import pytest
import torch

from bundle.data.volumes.phantom import write_phantom
from bundle.inferers.halo import HaloInferer

ODD = (47, 38, 33)
# Axes stored as anterior, left, inferior, turned by 10 degrees: every step back must be taken, none twice.
OBLIQUE = np.array(
    [
        [0.0, -0.79, 0.0, 31.25],
        [0.69, 0.0, 0.26, -97.5],
        [0.12, 0.0, -1.48, 12.125],
        [0.0, 0.0, 0.0, 1.0],
    ]
)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Two patients with a file of the same name, one of them oblique, flipped and of odd size."""
    folder = tmp_path_factory.mktemp("scans")
    write_phantom(folder / "p1" / "ct.nii.gz", ODD, OBLIQUE, seed=1)
    write_phantom(folder / "p2" / "ct.nii.gz", (36, 40, 32), np.diag([-0.7, -0.7, 1.5, 1.0]), seed=2)
    return folder


@pytest.fixture(scope="module")
def output(python, scans, checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reconstruction")
    python.run("inference", dataset_dir=scans, ckpt_path=checkpoint, output_dir=folder).expect_success()
    return folder


def by_hand(network, image: nib.Nifti1Image) -> np.ndarray:
    """Window, network and its inverse with nibabel, NumPy and one call of the inferer."""
    to_ras = nib.io_orientation(image.affine)
    hu = nib.apply_orientation(np.asarray(image.dataobj, np.float32), to_ras)
    tensor = torch.from_numpy(hu.clip(-1000, 1000) / 1000)[None, None].contiguous()
    with torch.no_grad():
        pred = HaloInferer(tile_size=128)(tensor, network)[0, 0].numpy()
    back = nib.orientations.ornt_transform(np.array([[0, 1], [1, 1], [2, 1]]), to_ras)
    return nib.apply_orientation(np.rint(pred.clip(-1, 1) * 1000), back)


def test_patients_with_files_of_the_same_name_do_not_meet(output):
    files = sorted(path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())

    results = [f"{patient}/ct_recon{end}" for patient in ("p1", "p2") for end in (".json", ".nii.gz")]
    assert files == ["inference.log", *results, "run.json"]


@pytest.mark.parametrize("patient", ["p1", "p2"])
def test_the_file_has_the_geometry_of_its_input_to_the_last_bit(output, scans, patient):
    image, recon = nib.load(scans / patient / "ct.nii.gz"), nib.load(output / patient / "ct_recon.nii.gz")

    assert recon.get_data_dtype() == np.int16
    assert recon.shape == image.shape
    assert (recon.affine == image.affine).all()
    for field in ("sform_code", "qform_code", "pixdim", "xyzt_units", "srow_x", "quatern_b"):
        assert (recon.header[field] == image.header[field]).all(), field
    assert recon.dataobj.slope == 1
    assert recon.dataobj.inter == 0


@pytest.mark.parametrize("patient", ["p1", "p2"])
def test_voxels_are_what_the_network_gives_by_hand(output, scans, network, patient):
    expected = by_hand(network, nib.load(scans / patient / "ct.nii.gz"))

    voxels = np.asarray(nib.load(output / patient / "ct_recon.nii.gz").dataobj)

    assert np.ptp(voxels) > 100  # not the constant that a dead network gives
    # half a HU may round to either side
    assert np.abs(voxels - expected).max() <= 1
    assert (voxels == expected).mean() > 0.999


def test_one_file_in_small_tiles_gives_the_same_volume(python, output, scans, checkpoint, tmp_path):
    settings = {"tile_size": 16, "ckpt_path": checkpoint, "output_dir": tmp_path / "out"}
    python.run("inference", dataset_dir=scans / "p1" / "ct.nii.gz", **settings).expect_success()

    whole, tiled = (
        np.asarray(nib.load(path).dataobj)
        for path in (output / "p1" / "ct_recon.nii.gz", tmp_path / "out" / "ct_recon.nii.gz")
    )

    assert np.abs(whole - tiled).max() <= 1
    assert (whole == tiled).mean() > 0.999


def test_the_log_counts_what_the_window_clips_per_file(output, scans):
    log = (output / "inference.log").read_text(encoding="utf-8")
    voxels = np.asarray(nib.load(scans / "p1" / "ct.nii.gz").dataobj)

    below = int((voxels < -1000).sum())
    assert below > 0
    assert f"p1/ct.nii.gz: {below} of {voxels.size} voxels" in log
