"""How a file is written does not matter, and a length that lies allocates nothing."""

import logging
import struct
import tracemalloc
import zlib

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian

from bundle.data.dicom.header import read_dicom_headers
from bundle.data.dicom.series import find_one_series, find_series
from bundle.data.volumes.formats import VolumeError, read_header
from bundle.data.volumes.reading import read_volume

HU = np.random.default_rng(0).integers(-1024, 2000, (5, 6, 8)).astype(np.int16)  # Z, rows, columns
VOXELS = HU.transpose(2, 1, 0)


def written_as(path, syntax, edit=lambda dataset: None):
    """Writes a file again in another transfer syntax."""
    source = pydicom.dcmread(path)
    elements = {element.tag: element for element in source}
    meta = FileMetaDataset(source.file_meta)
    meta.TransferSyntaxUID = syntax
    arguments = {"is_implicit_VR": syntax.is_implicit_VR, "is_little_endian": syntax.is_little_endian}
    copy = FileDataset(str(path), elements, b"\0" * 128, meta, **arguments)
    edit(copy)
    copy.save_as(path)


def parts(path):
    """Preamble, mark and group 0002 of a file; and its data set."""
    content = path.read_bytes()
    end = 144 + struct.unpack_from("<I", content, 140)[0]
    return content[:end], content[end:]


def explicit(path):
    written_as(path, ExplicitVRLittleEndian)


def deflated(path):
    written_as(path, DeflatedExplicitVRLittleEndian)


def big_endian(path):
    def swap(dataset):
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()

    written_as(path, ExplicitVRBigEndian, swap)


def explicit_that_says_implicit(path):
    explicit(path)
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0"))


def implicit_that_says_explicit(path):
    implicit = parts(path)[1]
    explicit(path)
    path.write_bytes(parts(path)[0] + implicit)


def unpacked_that_says_jpeg(path):
    explicit(path)
    head, data = parts(path)
    head = head.replace(
        b"\x02\x00\x10\x00UI\x14\x001.2.840.10008.1.2.1\0",
        b"\x02\x00\x10\x00UI\x16\x001.2.840.10008.1.2.4.70",
    )
    path.write_bytes(head[:140] + struct.pack("<I", len(head) - 144) + head[144:] + data)


def without_preamble(path):
    path.write_bytes(path.read_bytes()[132:])


def without_preamble_and_group_2(path):
    path.write_bytes(parts(path)[1])


def explicit_without_preamble_and_group_2(path):
    explicit(path)
    without_preamble_and_group_2(path)


def big_endian_without_preamble_and_group_2(path):
    big_endian(path)
    without_preamble_and_group_2(path)


def with_mark_and_without_group_2(path):
    path.write_bytes(path.read_bytes()[:132] + parts(path)[1])


def padded_behind_its_pixels(path):
    content = path.read_bytes()
    place = content.rindex(b"\xe0\x7f\x10\x00")
    pixels = content[place + 8 :] + b"\0" * 500
    path.write_bytes(content[: place + 4] + struct.pack("<I", len(pixels)) + pixels)


def with_a_sequence_of_no_length_before(path):
    item = struct.pack("<HHI", 0x0008, 0x0100, 2) + b"A "
    items = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + item + struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
    sequence = (
        struct.pack("<HHI", 0x0008, 0x1032, 0xFFFFFFFF) + items + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    )
    head, data = parts(path)
    place = data.index(b"\x10\x00\x10\x00")
    path.write_bytes(head + data[:place] + sequence + data[place:])


WAYS = [
    explicit, deflated, big_endian, explicit_that_says_implicit, implicit_that_says_explicit,
    unpacked_that_says_jpeg, without_preamble, without_preamble_and_group_2,
    explicit_without_preamble_and_group_2, big_endian_without_preamble_and_group_2,
    with_mark_and_without_group_2, padded_behind_its_pixels, with_a_sequence_of_no_length_before,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_series_is_read_however_its_files_are_written(write_dicom, tmp_path, way, caplog):
    folder = write_dicom(tmp_path / "ct", HU)
    expected = read_volume(folder)
    for path in folder.iterdir():
        way(path)

    volume = read_volume(folder)

    np.testing.assert_array_equal(volume.voxels, VOXELS)
    np.testing.assert_array_equal(volume.affine, expected.affine)
    assert find_one_series(folder).patient and not caplog.text


@pytest.mark.parametrize(("keyword", "form"), [("FloatPixelData", "f4"), ("DoubleFloatPixelData", "f8")])
def test_pixels_of_floating_point_are_read(write_dicom, tmp_path, keyword, form):
    folder = write_dicom(tmp_path / "ct", HU)
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        stored = np.frombuffer(dataset.PixelData, "<u2").astype(form) + 0.25
        del dataset.PixelData
        setattr(dataset, keyword, stored.tobytes())
        dataset.BitsAllocated = 8 * stored.itemsize
        dataset.save_as(path)

    np.testing.assert_array_equal(read_volume(folder).voxels, VOXELS + np.float32(0.25))


def test_24_slices_of_which_8_are_bare_stay_24(write_dicom, tmp_path):
    slices = np.random.default_rng(0).integers(-1000, 1000, (24, 6, 8)).astype(np.int16)
    folder = write_dicom(tmp_path / "ct", slices)
    for path in find_one_series(folder).headers[16:]:
        without_preamble_and_group_2(path.path)

    np.testing.assert_array_equal(read_volume(folder).voxels, slices.transpose(2, 1, 0))


@pytest.mark.parametrize("tag", [0x0008103E, 0x00100020, 0x0040A730], ids=["wanted", "patient", "sequence"])
def test_a_length_that_lies_is_neither_believed_nor_allocated(write_dicom, tmp_path, tag):
    folder = write_dicom(tmp_path / "ct", HU)
    path = sorted(folder.iterdir())[2]
    head, data = parts(path)
    lie = struct.pack("<HHI", tag >> 16, tag & 0xFFFF, 0xFFFFFFF0)
    place = data.index(b"\x20\x00\x0d\x00")
    path.write_bytes(head + data[:place] + lie + data[place:])

    tracemalloc.start()
    with pytest.raises(VolumeError, match=f"{path.name} is truncated") as refused:
        read_header(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 4 << 20 and refused.value.code == "truncated"


def test_a_deflated_file_is_not_unpacked_without_limit(write_dicom, tmp_path, monkeypatch):
    monkeypatch.setattr("bundle.data.dicom.parsing.MAX_UNPACKED_BYTES", 1 << 20)
    folder = write_dicom(tmp_path / "ct", HU)
    for path in folder.iterdir():
        deflated(path)
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    path.write_bytes(parts(path)[0] + packer.compress(bytes(2 << 20)) + packer.flush())

    with pytest.raises(
        VolumeError, match=f"{path.name} is deflated from more than .*; export the series uncompressed"
    ):
        read_volume(folder)


def test_a_header_that_ends_before_the_pixels_is_refused(write_dicom, tmp_path):
    folder = write_dicom(tmp_path / "ct", HU)
    path = sorted(folder.iterdir())[2]
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"\xe0\x7f\x10\x00")])

    with pytest.raises(
        VolumeError, match=f"{path.name} is truncated: it ends before its pixels; copy it again"
    ):
        read_volume(folder)


def test_no_value_of_a_damaged_header_reaches_log_or_warnings(write_dicom, tmp_path, caplog, recwarn):
    folder = write_dicom(tmp_path / "ct", HU, tags={"0008|0005": "SECRET_17", "0010|0030": "SECRET_18"})

    with caplog.at_level(logging.DEBUG):
        read_volume(folder)
        headers = [header for path in folder.iterdir() for header in read_dicom_headers(path)]

    assert (
        len(headers) == 5 and "SECRET" not in f"{headers} {caplog.text} {[str(w.message) for w in recwarn]}"
    )


def test_files_without_series_uid_are_one_series_and_get_one_line(write_dicom, tmp_path):
    folder = write_dicom(tmp_path / "ct", HU)
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        del dataset.SeriesInstanceUID
        dataset.save_as(path)

    np.testing.assert_array_equal(read_volume(folder).voxels, VOXELS)


def test_a_fault_of_all_files_is_told_once(write_dicom, tmp_path):
    folder = write_dicom(tmp_path / "ct", HU)
    for path in list(folder.iterdir()):
        path.write_bytes(path.read_bytes()[:300])
        path.rename(f"{path}.dcm")

    (series,) = find_series(tmp_path)

    assert series.reason is not None and series.reason.code == "truncated"
    assert series.reason.message.endswith("; copy it again (5 of 5 slices)")
