import gzip
import logging
import struct

import nibabel as nib
import numpy as np
import pytest

from bundle.data.volumes.formats import VolumeError, read_header

VOXELS = np.zeros((6, 5, 4), np.int16)


def repack(path, edit):
    """Rewrites the unpacked bytes of a .nii.gz file."""
    path.write_bytes(gzip.compress(edit(gzip.decompress(path.read_bytes()))))
    return path


def test_a_header_is_read_with_the_geometry_of_nibabel(save_nifti):
    path = save_nifti(VOXELS)

    header = read_header(path)

    assert header.shape == (6, 5, 4)
    np.testing.assert_array_equal(header.affine, nib.load(path).affine)
    assert header.header["sform_code"] == nib.load(path).header["sform_code"]


@pytest.mark.parametrize("shape", [(6, 5, 4, 1), (1, 6, 5, 4), (6, 5, 4, 1, 1), (1, 6, 5, 4, 1)])
def test_axes_of_one_around_the_volume_are_dropped(save_nifti, shape):
    assert read_header(save_nifti(VOXELS.reshape(shape))).shape == (6, 5, 4)


@pytest.mark.parametrize(
    "shape, message",
    [
        ((6, 5), r"must hold a 3D volume, got the 2D shape \(6, 5\)"),
        ((6, 5, 1), r"must hold a 3D volume, got the 2D shape \(6, 5, 1\)"),
        ((1, 6, 5), r"must hold a 3D volume, got the 2D shape \(1, 6, 5\)"),
        ((6, 5, 4, 3), r"must hold one volume, got 3 \(shape \(6, 5, 4, 3\)\)"),
        ((6, 5, 1, 3), r"must hold one volume, got 3"),
        ((6, 5, 4, 2, 3), r"must hold one volume, got 6"),
    ],
)
def test_what_is_not_one_volume_is_refused(save_nifti, shape, message):
    with pytest.raises(VolumeError, match=r"volume_0\.nii\.gz: " + message):
        read_header(save_nifti(np.zeros(shape, np.int16)))


def test_colours_are_refused(save_nifti):
    colours = np.zeros((6, 5, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])

    with pytest.raises(VolumeError, match="must hold one number per voxel, got RGB"):
        read_header(save_nifti(colours))


def test_complex_voxels_are_refused(save_nifti):
    with pytest.raises(VolumeError, match="must hold real numbers, got complex64"):
        read_header(save_nifti(np.zeros((6, 5, 4), np.complex64)))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(VolumeError, match=r"gone\.nii\.gz: no such file; check the path"):
        read_header(tmp_path / "gone.nii.gz")


def test_a_folder_without_dicom_is_not_a_volume(tmp_path):
    with pytest.raises(VolumeError, match="holds no DICOM series; give a folder of one or one of its files"):
        read_header(tmp_path)


@pytest.mark.parametrize(
    "name, content",
    [
        ("text.nii", b"not an image " * 100),
        ("empty.nii", b""),
        ("empty.nii.gz", b""),
        ("unpacked.nii.gz", b"not gzip " * 100),
        ("packed_text.nii.gz", gzip.compress(b"not an image " * 100, mtime=0)),
        ("short.nii.gz", gzip.compress(b"short", mtime=0)),
    ],
)
def test_what_is_not_nifti_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(VolumeError, match=f"{name}: is not a readable NIfTI file .*; convert the scan again"):
        read_header(tmp_path / name)


def test_another_image_format_is_refused(tmp_path):
    path = tmp_path / "image.mgz"
    nib.save(nib.MGHImage(np.zeros((6, 5, 4), np.float32), np.eye(4)), path)

    with pytest.raises(VolumeError, match=r"image\.mgz: is not a \.nii or \.nii\.gz file"):
        read_header(path)


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
def test_a_truncated_gz_is_refused(save_nifti, kept):
    path = save_nifti(np.random.default_rng(0).integers(-1000, 1000, (40, 40, 40)).astype(np.int16))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])

    with pytest.raises(VolumeError, match="is truncated: its header declares 128,352 bytes, it holds"):
        read_header(path)


def test_a_truncated_nii_is_refused(save_nifti):
    path = save_nifti(VOXELS, name="raw.nii")
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(VolumeError, match=r"raw\.nii: is truncated: .* 592 bytes, it holds 591"):
        read_header(path)


def test_a_gz_of_several_members_is_accepted(save_nifti):
    path = save_nifti(VOXELS)
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[:400]) + gzip.compress(content[400:]))

    assert read_header(path).shape == (6, 5, 4)


def test_a_header_that_declares_more_than_the_file_can_hold_is_refused_unread(save_nifti):
    path = repack(save_nifti(VOXELS), lambda raw: raw[:42] + struct.pack("<3h", *[32767] * 3) + raw[48:])

    with pytest.raises(
        VolumeError, match="its header declares 70,362,301,923,678 bytes, more than .* can hold"
    ):
        read_header(path)


def test_an_empty_axis_is_refused(save_nifti):
    path = repack(save_nifti(VOXELS), lambda raw: raw[:42] + struct.pack("<3h", 6, 0, 4) + raw[48:])

    with pytest.raises(VolumeError, match=r"\(6, 0, 4\), which holds no voxel"):
        read_header(path)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_an_affine_that_is_not_finite_is_refused(save_nifti, number):
    # srow_x lies at byte 280 of the header
    path = repack(save_nifti(VOXELS), lambda raw: raw[:280] + struct.pack("<f", number) + raw[284:])

    with pytest.raises(VolumeError, match="its affine holds NaN or infinite numbers"):
        read_header(path)


@pytest.mark.parametrize("axes", [np.diag([0.7, 0.0, 1.5]), np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]])])
def test_a_singular_affine_is_refused(save_nifti, axes):
    rows = struct.pack("<12f", *np.hstack([axes, np.zeros((3, 1))]).ravel())
    path = repack(save_nifti(VOXELS), lambda raw: raw[:280] + rows + raw[328:])

    with pytest.raises(VolumeError, match="its affine is singular"):
        read_header(path)


def test_a_file_without_orientation_is_taken_with_a_warning(save_nifti, caplog):
    path = repack(save_nifti(VOXELS), lambda raw: raw[:252] + struct.pack("<2h", 0, 0) + raw[256:])

    with caplog.at_level(logging.WARNING):
        read_header(path)

    assert f"{path}: states no orientation" in caplog.text
