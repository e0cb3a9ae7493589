import gzip
import logging
import struct

import nibabel as nib
import numpy as np
import pytest

from bundle.data.volumes.formats import VolumeError, read_header
from bundle.data.volumes.reading import read_volume
from bundle.data.volumes.unpacking import MAX_LAYERS
from bundle.data.volumes.writing import CTWriter
from scripts.inspect import main as inspect
from scripts.prepare import prepare

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

    with pytest.raises(VolumeError, match=r"image\.mgz: is not a volume; give a \.nii or \.nii\.gz"):
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


def test_a_product_of_lengths_beyond_64_bits_is_refused_unread(tmp_path):
    header = nib.Nifti2Header()
    header.set_data_dtype(np.int16)
    header["dim"] = [3, 1 << 31, 1 << 31, 2, 1, 1, 1, 1]  # times 2 bytes: 2 ** 64, which is 0 in 64 bits
    header["magic"], header["vox_offset"] = header.single_magic, header.single_vox_offset
    path = tmp_path / "scan.nii"
    path.write_bytes(header.binaryblock + bytes(4 + 100))

    with pytest.raises(
        VolumeError, match="is truncated: its header declares 18,446,744,073,709,552,160 bytes"
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


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_an_intercept_that_is_not_finite_is_refused_with_the_header(save_nifti, number):
    scaling = struct.pack("<2f", 1, number)  # slope and intercept lie at byte 112 of the header
    path = repack(save_nifti(VOXELS), lambda raw: raw[:112] + scaling + raw[120:])

    with pytest.raises(VolumeError, match="is not a readable NIfTI file .Valid slope but invalid intercept"):
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


HU = np.random.default_rng(0).integers(-1000, 1000, (40, 30, 20)).astype(np.int16)
# What is made of the bytes of a .nii file, and the suffix of the file that holds them.
PACKED = {
    "plain": (lambda raw: raw, ".nii"),
    "plain, called packed": (lambda raw: raw, ".nii.gz"),
    "packed, called plain": (gzip.compress, ".nii"),
    "packed twice": (lambda raw: gzip.compress(gzip.compress(raw)), ".nii.gz"),
    "bytes behind the end": (lambda raw: gzip.compress(raw) + b"signed by the archive", ".nii.gz"),
    "one byte behind the end": (lambda raw: gzip.compress(raw) + b"\x1f", ".nii.gz"),
    "zeros behind the end": (lambda raw: gzip.compress(raw) + bytes(1 << 19), ".nii.gz"),
    "members of 1000 bytes": (
        lambda raw: b"".join(gzip.compress(raw[n : n + 1000]) for n in range(0, len(raw), 1000)),
        ".nii.gz",
    ),
}


@pytest.fixture
def save_raw(tmp_path, save_nifti):
    """Saves edited bytes of a .nii file."""

    def save(edit, suffix=".nii", voxels=HU):
        raw = save_nifti(voxels, name="whole.nii").read_bytes()
        path = tmp_path / f"ct{suffix}"
        path.write_bytes(edit(raw))
        return path

    return save


@pytest.mark.parametrize("packing", PACKED)
def test_first_bytes_and_not_names_tell_whether_a_file_is_packed(save_raw, packing):
    path = save_raw(*PACKED[packing])

    assert read_header(path).shape == HU.shape
    np.testing.assert_array_equal(read_volume(path).voxels, HU)


@pytest.mark.parametrize("packing", ["packed, called plain", "packed twice", "bytes behind the end"])
def test_a_cut_or_changed_file_is_refused_however_it_is_packed(save_raw, packing):
    edit, suffix = PACKED[packing]

    cut = save_raw(lambda raw: edit(raw[:-2]), suffix)
    with pytest.raises(VolumeError, match=r"is truncated: its header declares 48,352 bytes, it holds 48,350"):
        read_header(cut)
    damaged = bytearray(save_raw(edit, suffix).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    cut.write_bytes(damaged)
    with pytest.raises(VolumeError, match="ct.nii"):
        read_volume(cut)


def test_a_file_that_is_packed_more_often_is_no_nifti(save_raw):
    def pack(raw):
        for _ in range(MAX_LAYERS + 1):
            raw = gzip.compress(raw)
        return raw

    with pytest.raises(VolumeError, match="it does not begin with a NIfTI header"):
        read_header(save_raw(pack, ".nii.gz"))


def test_a_quaternion_that_rounding_made_too_long_is_read(save_raw, tmp_path):
    """w^2 is -1.9e-6; sform is absent, so the quaternion decides, in our result too."""
    numbers = struct.pack("<2h", 1, 0) + struct.pack("<6f", np.sqrt(0.5), np.sqrt(0.5 + 1.9e-6), 0, 1, 2, 3)
    path = save_raw(lambda raw: raw[:252] + numbers + raw[280:])

    header = read_header(path)

    np.testing.assert_allclose(header.affine[:3, 0], [0, 0.7, 0], atol=1e-5)
    np.testing.assert_allclose(header.affine[:3, 3], [1, 2, 3])
    writer = CTWriter()
    writer.set_data_array(HU[None])
    writer.set_metadata({"filename_or_obj": str(path), "affine": header.affine})
    writer.write(tmp_path / "out.nii")
    np.testing.assert_array_equal(read_header(tmp_path / "out.nii").affine, header.affine)
    assert (tmp_path / "out.nii").read_bytes()[256:280] == path.read_bytes()[256:280]
    far_too_long = numbers[:4] + struct.pack("<f", 1.1) + numbers[8:]
    with pytest.raises(VolumeError, match="w2 should be positive"):
        read_header(save_raw(lambda raw: raw[:252] + far_too_long + raw[280:]))


def test_an_sform_of_zeros_beside_a_good_quaternion_is_passed_over(save_raw, tmp_path):
    numbers = struct.pack("<2h", 1, 1) + struct.pack("<6f", 0, 0, 1, 1, 2, 3) + bytes(48)
    path = save_raw(lambda raw: raw[:252] + numbers + raw[328:])

    header = read_header(path)

    np.testing.assert_allclose(
        header.affine, [[-0.7, 0, 0, 1], [0, -0.8, 0, 2], [0, 0, 1.5, 3], [0, 0, 0, 1]], atol=1e-6
    )
    assert (header.header["sform_code"], header.header["qform_code"]) == (0, 1)


def with_extension(raw, offset):
    extension = struct.pack("<2i", 64, 6) + b"a comment".ljust(56, b"\0")
    return raw[:108] + struct.pack("<f", offset) + raw[112:348] + b"\1\0\0\0" + extension + raw[352:]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("offset", [0, 100, 351])
def test_voxels_that_begin_inside_the_header_are_refused(save_raw, suffix, offset):
    pack = gzip.compress if suffix == ".nii.gz" else bytes
    path = save_raw(lambda raw: pack(raw[:108] + struct.pack("<f", offset) + raw[112:]), suffix)

    with pytest.raises(VolumeError, match=f"its voxels cannot begin at byte {offset}, inside its header"):
        read_header(path)


@pytest.mark.parametrize("offset", [352, 368, 400])
def test_voxels_that_begin_inside_an_extension_are_refused(save_raw, offset):
    with pytest.raises(VolumeError, match=f"cannot begin at byte {offset}, inside an extension"):
        read_header(save_raw(lambda raw: with_extension(raw, offset)))


def test_voxels_behind_an_extension_are_read(save_raw):
    path = save_raw(lambda raw: with_extension(raw, 416))

    np.testing.assert_array_equal(read_volume(path).voxels, HU)


def test_a_mark_of_extensions_without_any_is_passed_over(save_raw):
    path = save_raw(lambda raw: raw[:348] + b"\1\0\0\0" + raw[352:])

    np.testing.assert_array_equal(read_volume(path).voxels, HU)


ODD = {
    "metres": (lambda raw: raw[:123] + b"\1" + raw[124:], "its header says that lengths are in metres"),
    "pixdim of 0": (
        lambda raw: raw[:80] + struct.pack("<3f", 0, 0.8, 1.5) + raw[92:],
        "its pixdim says 0 x 0.8 x 1.5 where its affine says 0.7 x 0.8 x 1.5 mm; the affine is used",
    ),
    "pixdim of 1500": (
        lambda raw: raw[:80] + struct.pack("<3f", 0.7, 0.8, 1500) + raw[92:],
        "its pixdim says 0.7 x 0.8 x 1500 where its affine says 0.7 x 0.8 x 1.5 mm",
    ),
    "affine of 1500": (
        lambda raw: raw[:88] + struct.pack("<f", 1500) + raw[92:320] + struct.pack("<f", 1500) + raw[324:],
        "its voxel edges of 0.7 x 0.8 x 1500 mm are unusual for a CT",
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_units_and_lengths_are_told_by_every_door(save_raw, tmp_path, capsys, kind):
    edit, told = ODD[kind]
    path = save_raw(edit)

    (note,) = read_header(path).notes
    assert note.startswith(told)
    assert prepare(path, tmp_path / "STORE", 0)[0].message == note
    assert inspect([str(path)]) == 0
    assert f"  ct.nii: {note}" in capsys.readouterr().out


def test_an_ordinary_file_has_no_note(save_nifti):
    assert read_header(save_nifti(HU)).notes == ()
