import gzip
import logging

import nibabel as nib
import numpy as np
import pytest
import torch

from bundle.data.volumes.formats import VolumeError
from bundle.data.volumes.writing import CTWriter

SHAPE = (7, 6, 5)
VOXELS = np.random.default_rng(0).integers(-1024, 3072, SHAPE).astype(np.int16)
OBLIQUE = np.array(
    [[-0.61, 0.13, 0.2, 71.3], [0.17, 0.62, 0.3, -40.1], [-0.1, -0.11, 2.4, 11.7], [0, 0, 0, 1]]
)


def write(path, voxels, meta):
    writer = CTWriter()
    writer.set_data_array(voxels, channel_dim=0 if voxels.ndim == 4 else None)
    writer.set_metadata(meta, resample=False)
    writer.write(path)
    return nib.load(path)


def geometry(image):
    """Everything that places voxels, as stored."""
    header = image.header
    fields = ["sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d"]
    fields += ["qoffset_x", "qoffset_y", "qoffset_z", "xyzt_units"]
    return [header[field].tolist() for field in fields] + header["pixdim"][:4].tolist()


def meta_of(path):
    return {"filename_or_obj": str(path), "affine": torch.from_numpy(nib.load(path).affine)}


@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("codes", [(1, 1), (2, 0), (0, 1), (4, 2), (0, 0)])
def test_the_geometry_of_the_source_is_kept_to_the_last_bit(tmp_path, codes, image_class):
    source = image_class(VOXELS, OBLIQUE)
    source.set_sform(OBLIQUE, code=codes[0])
    source.set_qform(OBLIQUE, code=codes[1])
    source.header.set_xyzt_units("mm", "sec")
    nib.save(source, tmp_path / "in.nii.gz")

    written = write(tmp_path / "out.nii.gz", VOXELS[None], meta_of(tmp_path / "in.nii.gz"))

    original = nib.load(tmp_path / "in.nii.gz")
    assert geometry(written) == geometry(original) and type(written) is type(original)
    np.testing.assert_array_equal(written.affine, original.affine)
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), VOXELS)


def test_a_big_endian_source_keeps_its_geometry(tmp_path):
    nib.save(nib.Nifti1Image(VOXELS, OBLIQUE, nib.Nifti1Header(endianness=">")), tmp_path / "in.nii")

    written = write(tmp_path / "out.nii", VOXELS, meta_of(tmp_path / "in.nii"))

    np.testing.assert_array_equal(written.affine, nib.load(tmp_path / "in.nii").affine)
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), VOXELS)


def test_data_on_another_grid_get_the_affine_they_came_with(tmp_path, save_nifti):
    source = save_nifti(VOXELS, OBLIQUE)

    written = write(tmp_path / "out.nii.gz", VOXELS, {"filename_or_obj": str(source), "affine": np.eye(4)})

    np.testing.assert_array_equal(written.affine, np.eye(4))
    assert (int(written.header["sform_code"]), written.header.get_xyzt_units()[0]) == (1, "mm")


@pytest.mark.parametrize("meta", [None, {}, {"filename_or_obj": "a_dicom_folder", "affine": np.eye(4)}])
def test_a_source_that_is_no_nifti_file_is_not_needed(tmp_path, meta):
    written = write(tmp_path / "out.nii.gz", VOXELS, meta)

    np.testing.assert_array_equal(np.asanyarray(written.dataobj), VOXELS)


def test_nothing_of_the_patient_is_carried_on(tmp_path):
    source = nib.Nifti1Image(VOXELS, OBLIQUE)
    source.header["descrip"], source.header["db_name"] = b"Name^Given", b"1970-01-01"
    source.header["cal_min"], source.header["cal_max"] = -1, 1
    source.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Name^Given"))
    nib.save(source, tmp_path / "in.nii")

    written = write(tmp_path / "out.nii", VOXELS, meta_of(tmp_path / "in.nii"))

    assert b"Name^Given" in (tmp_path / "in.nii").read_bytes()
    assert b"Name" not in (tmp_path / "out.nii").read_bytes()
    assert not written.header.extensions
    assert (float(written.header["cal_min"]), float(written.header["cal_max"])) == (0, 0)


def test_whole_numbers_of_any_type_are_written_as_int16_without_scaling(tmp_path):
    written = write(tmp_path / "out.nii.gz", torch.from_numpy(VOXELS.astype(np.float32))[None], {})

    raw = gzip.decompress((tmp_path / "out.nii.gz").read_bytes())
    assert np.frombuffer(raw[112:120], "<f4").tolist() == [1, 0]
    assert written.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), VOXELS)


def test_equal_data_give_equal_bytes(tmp_path):
    write(tmp_path / "a.nii.gz", VOXELS, {})
    write(tmp_path / "b.nii.gz", np.asfortranarray(VOXELS), {})

    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize("value", [40_000.0, -40_000.0, np.nan])
def test_values_beyond_int16_are_refused(tmp_path, value):
    voxels = VOXELS.astype(np.float32)
    voxels[0, 0, 0] = value

    with pytest.raises(ValueError, match="`data_array` must fit int16, got values from"):
        CTWriter().set_data_array(voxels, channel_dim=None)


def test_several_channels_are_refused():
    with pytest.raises(
        ValueError, match=r"`data_array` must be one volume \(1, X, Y, Z\), got the shape \(2, 7"
    ):
        CTWriter().set_data_array(np.stack([VOXELS, VOXELS]))


def test_the_input_is_never_overwritten(save_nifti):
    source = save_nifti(VOXELS)
    before = source.read_bytes()

    with pytest.raises(
        VolumeError, match="is the input itself and will not be overwritten; change `output_dir`"
    ):
        write(source, VOXELS, meta_of(source))
    assert source.read_bytes() == before


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(VolumeError, match=r"out\.mha: must end in \.nii or \.nii\.gz"):
        write(tmp_path / "out.mha", VOXELS, {})


def test_a_failed_write_leaves_the_older_result_and_nothing_else(tmp_path, monkeypatch):
    write(tmp_path / "out.nii.gz", VOXELS, {})
    before = (tmp_path / "out.nii.gz").read_bytes()
    writer = CTWriter()
    writer.set_data_array(VOXELS, channel_dim=None)
    writer.header = None  # fails after the temporary file has been opened

    with pytest.raises(AttributeError):
        writer.write(tmp_path / "out.nii.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["out.nii.gz"]
    assert (tmp_path / "out.nii.gz").read_bytes() == before


def test_the_path_is_logged(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        write(tmp_path / "out.nii.gz", VOXELS, {})

    assert f"wrote {tmp_path / 'out.nii.gz'}" in caplog.text
