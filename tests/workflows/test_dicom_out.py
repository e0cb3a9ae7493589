"""A DICOM series in, the series of its reconstruction out, as a user types it."""

import numpy as np
import pydicom
import pytest

from bundle.data.volumes.phantom import write_phantom
from bundle.data.volumes.reading import read_volume


@pytest.fixture(scope="module")
def series(write_dicom, tmp_path_factory):
    """Two patients, one series each."""
    folder = tmp_path_factory.mktemp("dicom")
    voxels = np.random.default_rng(0).integers(-1000, 1000, (12, 16, 20)).astype(np.int16)
    for number in (1, 2):
        tags = {"0010|0010": f"PATIENT^{number}"}
        write_dicom(folder / f"p{number}" / "ct", voxels // number, tags=tags, series=f"1.2.{number}")
    return folder


def test_the_series_holds_the_voxels_of_the_nifti_in_the_place_of_the_input(
    python, series, checkpoint, tmp_path
):
    model = {"dataset_dir": series, "ckpt_path": checkpoint}
    python.run("inference", **model, output_dir=tmp_path / "nifti").expect_success()

    done = python.run("inference", **model, output_dir=tmp_path / "dicom", output_format="dicom")

    done.expect_success()
    assert "PATIENT" not in done.output
    for number in (1, 2):
        folder = tmp_path / "dicom" / f"p{number}" / "ct_recon"
        nifti = read_volume(tmp_path / "nifti" / f"p{number}" / "ct_recon.nii.gz")
        written = read_volume(folder)
        np.testing.assert_array_equal(written.voxels, nifti.voxels)
        np.testing.assert_array_equal(written.affine, read_volume(series / f"p{number}" / "ct").affine)
        header = pydicom.dcmread(folder / "0001.dcm")
        assert header.PatientName == f"PATIENT^{number}"
        assert "model unknown" not in header.DerivationDescription


def test_a_nifti_among_the_inputs_is_refused_before_anything_is_written(
    python, series, checkpoint, out, tmp_path
):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "p1").symlink_to(series / "p1")
    write_phantom(tmp_path / "data" / "p3" / "ct.nii.gz", (16, 16, 12), np.eye(4))
    model = {"dataset_dir": tmp_path / "data", "ckpt_path": checkpoint, "output_dir": out}

    done = python.run("inference", **model, output_format="dicom")

    done.expect_refusal("ct.nii.gz: is not DICOM", "--output_format nifti", output_dir=out)


def test_an_unknown_format_is_refused_before_anything_is_written(python, series, checkpoint, out):
    model = {"dataset_dir": series, "ckpt_path": checkpoint, "output_dir": out}

    done = python.run("inference", **model, output_format="nrrd")

    done.expect_refusal("`output_format` must be one of nifti, dicom, got 'nrrd'", output_dir=out)
