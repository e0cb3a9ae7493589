"""A file that lies about its size or depth costs neither memory nor minutes."""

import resource
import struct
import tracemalloc
from contextlib import closing

import numpy as np
import pytest

from bundle.data.dicom.gdcm_process import ROOM_BYTES
from bundle.data.dicom.header import read_dicom_headers
from bundle.data.dicom.parsing import MAX_HEADER_BYTES
from bundle.data.dicom.pixels import _Decoder
from bundle.data.dicom.series import find_one_series

HU = np.random.default_rng(0).integers(-1024, 2000, (2, 32, 24)).astype(np.int16)
EXPLICIT = b"1.2.840.10008.1.2.1\0"
NO_LENGTH = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = (struct.pack("<HHI", 0xFFFE, tag, 0) for tag in (0xE000, 0xE00D, 0xE0DD))
OPEN_ITEM = struct.pack("<HHI", 0xFFFE, 0xE000, NO_LENGTH)
SHARED, PER_FRAME, POSITION = 0x52009229, 0x52009230, 0x00209113


def element(tag, form, value, length=None):
    """An element of an explicit file; perhaps with another length than its value's."""
    length = len(value) if length is None else length
    group, number = tag >> 16, tag & 0xFFFF
    if form in (b"SQ", b"UN", b"OB"):
        return struct.pack("<HH2sHI", group, number, form, 0, length) + value
    return struct.pack("<HH2sH", group, number, form, length) + value


def write_file(path, *elements):
    meta = element(0x00020010, b"UI", EXPLICIT)
    head = bytes(128) + b"DICM" + element(0x00020000, b"UL", struct.pack("<I", len(meta))) + meta
    path.write_bytes(head + element(0x00080060, b"CS", b"CT") + b"".join(elements))
    return path


def sequence(tag, items, has_length):
    return element(tag, b"SQ", items) if has_length else element(tag, b"SQ", items + SEQUENCE_END, NO_LENGTH)


def test_a_value_beyond_the_bound_of_headers_is_never_read(tmp_path):
    path = write_file(tmp_path / "slice", element(0x00100020, b"UN", b"", MAX_HEADER_BYTES + 2))
    with path.open("r+b") as file:
        file.truncate(MAX_HEADER_BYTES + 4096)  # the file holds it, on a disk that stores no zeros

    tracemalloc.start()
    (header,) = read_dicom_headers(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert header.fault == ("damaged", "is damaged: its header has no end")
    assert peak < 1 << 20


@pytest.mark.parametrize(("depth", "is_sound"), [(20, True), (20_000, False)])
def test_sequences_in_sequences_are_followed_to_a_depth(tmp_path, depth, is_sound):
    nested = b""
    for _ in range(depth):
        nested = sequence(PER_FRAME, OPEN_ITEM + nested + ITEM_END, has_length=False)

    (header,) = read_dicom_headers(write_file(tmp_path / "slice", nested, element(0x7FE00010, b"OB", b"")))

    assert (header.fault is None) == is_sound
    assert is_sound or header.fault[0] == "damaged"


@pytest.mark.parametrize("has_length", [True, False], ids=["with its length", "without"])
@pytest.mark.parametrize("tag", [PER_FRAME, SHARED])
def test_a_file_of_frames_without_end_is_refused_before_they_are_taken_apart(
    tmp_path, monkeypatch, time_limit, tag, has_length
):
    """The items of 1.6 MB took more than a minute; 64 MB would have taken most of an hour."""
    monkeypatch.setattr("bundle.data.dicom.parsing.MAX_ITEMS", 1000)
    one_frame = sequence(PER_FRAME, ITEM, has_length=True)
    bomb = sequence(tag, ITEM * 400_000, has_length)
    beside = [] if tag == PER_FRAME else [one_frame]
    path = write_file(tmp_path / "slice", bomb, *beside, element(0x7FE00010, b"OB", b""))

    headers = read_dicom_headers(path)

    assert len(headers) <= 2
    if tag == PER_FRAME or not has_length:
        assert headers[0].fault is not None and headers[0].fault[0] == "damaged"


def test_a_macro_of_many_items_is_its_first(tmp_path, time_limit):
    place = ITEM[:4] + struct.pack("<I", 12 + 6) + element(0x00200032, b"DS", b"1\\2\\3 ") + b"\0" * 4
    macro = sequence(POSITION, place + ITEM * 400_000, has_length=True)
    frame = ITEM[:4] + struct.pack("<I", len(macro)) + macro
    path = write_file(tmp_path / "slice", sequence(PER_FRAME, frame, True), element(0x7FE00010, b"OB", b""))

    (header,) = read_dicom_headers(path)

    assert header.numbers("position") == (1, 2, 3)


def test_the_process_that_decodes_may_take_so_much_memory_and_no_more(write_dicom, tmp_path):
    folder = write_dicom(tmp_path / "ct", HU, compressor="JPEG")
    first = find_one_series(folder).headers[0]
    fragments = first.path.read_bytes()[first.pixel_start + 8 :]  # behind an empty table of offsets
    length = struct.unpack("<I", fragments[4:8])[0]
    with closing(_Decoder()) as decoder:
        stored = decoder.decode(first, fragments[8:][:length])
        soft, hard = resource.prlimit(decoder.process.pid, resource.RLIMIT_AS)

    assert stored.shape == (32, 24)
    assert soft == hard
    assert ROOM_BYTES < soft < 2 * ROOM_BYTES
