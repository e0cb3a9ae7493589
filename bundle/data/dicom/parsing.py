"""Reads raw elements of a DICOM file with pydicom, up to the pixels, and never more than the file holds.

By itself pydicom trusts the lengths that a file states (one file made it allocate 4 GB). It unpacks deflated
files without limit. Its warnings quote values, which may name the patient. So its element generator runs here
on a reader with limits, and values stay bytes.
"""

import errno
import logging
import os
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from pydicom.filereader import data_element_generator, read_sequence_item

from bundle.run.files import open_regular

PREAMBLE_BYTES = 128
MARK = b"DICM"
# Far more than an enhanced CT of thousands of frames has; a damaged file may claim more.
MAX_HEADER_BYTES, MAX_READS = 64 << 20, 2_000_000
# An item of a sequence takes 8 bytes of a file and a fraction of a millisecond. Each frame has about seven.
MAX_FRAMES, MAX_ITEMS = 20_000, 200_000
# For a deflated file, which is unpacked in memory; a slice has 0.5 MB.
MAX_UNPACKED_BYTES = 128 << 20
UNDEFINED = 0xFFFFFFFF
ITEMS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")

IMPLICIT_LITTLE, EXPLICIT_LITTLE = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
EXPLICIT_BIG, DEFLATED = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
NATIVE = (IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG, DEFLATED)
# JPEG (lossy 12 bit, lossless), JPEG-LS, JPEG 2000, RLE: what SimpleITK's GDCM decodes.
COMPRESSED = tuple(
    f"1.2.840.10008.1.2.{end}" for end in ("4.50 4.51 4.57 4.70 4.80 4.81 4.90 4.91 5".split())
)

TRANSFER_SYNTAX, STORAGE_CLASS = 0x00020010, 0x00020002
FLOAT_PIXELS, DOUBLE_PIXELS, PIXEL_DATA = 0x7FE00008, 0x7FE00009, 0x7FE00010
SHARED_GROUPS, FRAME_GROUPS, N_FRAMES = 0x52009229, 0x52009230, 0x00280008
# Sequences of one item that hold, per frame, what other CT holds for the whole file (PS3.3, C.7.6.16).
MACROS = frozenset(
    (
        *(0x00209111, 0x00209113, 0x00209116),  # content, position and orientation of a frame
        *(0x00289110, 0x00289145, 0x00289132),  # pixel spacing, rescaling, windows
        0x00189329,  # type of a frame
    )
)


def open_data_set(path: Path, syntax: str) -> BinaryIO:
    """Opens what the offsets of `Parsed` refer to: the file, or the unpacked data set of a deflated file.

    Raises:
        OSError: if it cannot be read.
    """
    file = open_regular(path)
    if syntax != DEFLATED:
        return file
    with file, quiet_pydicom():
        reader = _Reader(file, os.fstat(file.fileno()).st_size)
        try:
            _read_prefix(reader)
            return _unpacked(reader)
        except (_Fault, zlib.error) as error:
            raise OSError(errno.EIO, "it has changed") from error


def _unpacked(reader: "_Reader") -> BytesIO:
    """Returns the data set of a deflated file that is open at the end of its group 0002."""
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    packed = reader.file.read(min(reader.n_bytes, MAX_UNPACKED_BYTES))
    content = unpacker.decompress(packed, MAX_UNPACKED_BYTES)
    if unpacker.unconsumed_tail:
        raise _Fault("transfer_syntax", f"is deflated from more than {MAX_UNPACKED_BYTES >> 20} MB")
    return BytesIO(content)


def begins_data_set(head: bytes) -> bool:
    """Tells whether the first tag is one of those that DICOM files without preamble begin with."""
    for order in "<>":
        if len(head) < 8:
            return False
        group, element, form, length = struct.unpack(f"{order}HH2sH", head[:8])
        if group in (2, 8) and element <= 0x20:
            is_implicit_value = order == "<" and struct.unpack("<I", head[4:8])[0] <= 64
            if (_is_form(form) and length <= 1024) or is_implicit_value:
                return True
    return False


def _is_form(form: bytes) -> bool:
    """Tells whether two bytes can be a value representation, which explicit files write after each tag."""
    return re.fullmatch(rb"[A-Z]{2}", form) is not None


class _Fault(Exception):
    """Says what is wrong with a file: a code and words."""


class _Reader:
    """Limits what is read from an open file: no wrong length makes it read or allocate too much."""

    def __init__(self, file: BinaryIO, n_bytes: int) -> None:
        self.file = file
        self.n_bytes = n_bytes
        self.n_reads = 0
        self.n_read = 0
        self.n_short = 0
        self.n_items = 0
        self.error: OSError | None = None

    def read(self, length: int = -1) -> bytes:
        left = max(0, self.n_bytes - self.file.tell())
        if not 0 <= length <= left:
            self.n_short += 1
            length = left
        self.n_reads += 1
        self.n_read += length
        if self.n_read > MAX_HEADER_BYTES or self.n_reads > MAX_READS:
            raise _Fault("damaged", "is damaged: its header has no end")
        try:
            content = self.file.read(length)
        except OSError as error:  # pydicom raises OSError too, for what it cannot parse
            self.error = error
            raise
        self.n_items += length == 8 and content[:4] in ITEMS
        if self.n_items > MAX_ITEMS:
            raise _Fault("damaged", "is damaged: its sequences have no end")
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()


class Parsed:
    """Holds what could be read of a file: raw elements, and where its pixels are."""

    def __init__(self) -> None:
        self.storage_class = ""
        self.syntax = ""
        self.elements: dict[int, Any] = {}
        self.pixels: tuple[int, int, int | None] = (0, 0, None)
        self.fault: tuple[str, str] | None = None

    def frames(self) -> list[dict[int, Any]]:
        """Returns the elements of each frame, with those of its functional groups at the top level.

        If a file describes more frames than it declares, one more than declared is returned.
        """
        declared = text_of(getattr(self.elements.get(N_FRAMES), "value", None))
        n_frames = int(declared) if declared.isdecimal() and len(declared) < 10 else 1
        per_frame = self._lifted(FRAME_GROUPS, min(n_frames, MAX_FRAMES) + 1)
        if not per_frame:
            return [self.elements]
        shared = next(iter(self._lifted(SHARED_GROUPS, 1)), {})
        return [self.elements | shared | own for own in per_frame]

    def _lifted(self, groups: int, most: int) -> list[dict[int, Any]]:
        try:
            with quiet_pydicom():
                return [
                    {
                        int(inner.tag): inner
                        for macro in item.elements()
                        if int(macro.tag) in MACROS
                        for first in _items(macro, 1)
                        for inner in first.elements()
                    }
                    for item in _items(self.elements.get(groups), most)
                ]
        except Exception:  # pydicom may raise anything on damaged bytes
            self.fault = self.fault or ("damaged", "is damaged: its functional groups cannot be read")
            return []


def _items(element: Any, most: int) -> list[Any]:
    """Returns the first items of a sequence, whether it is still bytes or already parsed."""
    value = getattr(element, "value", None) or ()
    if isinstance(value, bytes):
        value = _items_of_bytes(value, element)
    return [item for item in islice(value, most) if hasattr(item, "elements")]


def _items_of_bytes(value: bytes, element: Any) -> Iterator[Any]:
    file = BytesIO(value)
    while file.tell() < len(value):
        item = read_sequence_item(file, element.is_implicit_VR, element.is_little_endian, "iso8859")
        if item is None:  # the mark of the sequence's end
            return
        yield item


def parse(path: Path, tags: Iterable[int]) -> Parsed:
    """Reads elements of a file up to its pixels.

    Raises:
        OSError: if the file cannot be read.
    """
    found = Parsed()
    with open_regular(path, buffering=1 << 14) as file, quiet_pydicom():
        reader = _Reader(file, os.fstat(file.fileno()).st_size)
        try:
            declared, found.storage_class = _read_prefix(reader)
            found.syntax = declared
            if declared == DEFLATED:
                content = _unpacked(reader)
                reader = _Reader(content, len(content.getbuffer()))
            _read_data_set(reader, found, tags)
        except _Fault as fault:
            found.fault = fault.args
        except Exception as error:  # pydicom may raise anything on damaged bytes
            if reader.error:
                raise reader.error from error
            found.fault = "damaged", f"is damaged: its header cannot be read ({type(error).__name__})"
    return found


def _read_prefix(reader: _Reader) -> tuple[str, str]:
    """Reads transfer syntax and storage class in a file's group 0002; the data set comes next."""
    head = reader.read(PREAMBLE_BYTES + len(MARK))
    if head[PREAMBLE_BYTES:] != MARK:
        if not begins_data_set(head):
            raise _Fault("damaged", "has no DICOM mark")
        reader.seek(0)
    start = reader.tell()
    is_implicit = not _is_form(reader.read(8)[4:6])
    reader.seek(start)
    found: dict[int, Any] = {}
    file = cast(BinaryIO, reader)
    for element in data_element_generator(file, is_implicit, True, lambda tag, *_: tag >> 16 != 2):
        found[int(element.tag)] = element.value
    return text_of(found.get(TRANSFER_SYNTAX)), text_of(found.get(STORAGE_CLASS))


def _read_data_set(reader: _Reader, found: Parsed, tags: Iterable[int]) -> None:
    """Reads the elements of these tags, up to the pixels."""
    start, ends = reader.tell(), []
    head = reader.read(8)
    reader.seek(start)
    # Judged by the first bytes, since some files declare their encoding wrong; the first group is 0008.
    is_implicit = not _is_form(head[4:6])
    is_little = is_implicit or int.from_bytes(head[:2], "little") < 0x400
    if found.syntax in (*NATIVE, ""):
        written = IMPLICIT_LITTLE if is_implicit else EXPLICIT_LITTLE if is_little else EXPLICIT_BIG
        found.syntax = DEFLATED if found.syntax == DEFLATED else written
    elif found.syntax not in COMPRESSED:
        uid = found.syntax if re.fullmatch(r"[\d.]{1,64}", found.syntax) else "no valid name"
        found.fault = "transfer_syntax", f"is packed in a way that is not supported ({uid})"

    def is_end(tag: int, form: str | None, length: int) -> bool:
        if tag < FLOAT_PIXELS:
            return False
        ends.append((int(tag), reader.tell(), length))
        return True

    reader.n_short = 0
    wanted: list[Any] = [*tags, N_FRAMES, SHARED_GROUPS, FRAME_GROUPS]
    file = cast(BinaryIO, reader)
    for element in data_element_generator(file, is_implicit, is_little, is_end, specific_tags=wanted):
        found.elements[int(element.tag)] = element
    if ends:
        _find_pixels(found, *ends[0], reader.n_bytes)
    # a file without pixels ends with one read that finds nothing
    elif reader.n_short != 1 or reader.tell() != reader.n_bytes:
        found.fault = found.fault or ("truncated", "is truncated: its header goes past its end")


def _find_pixels(found: Parsed, tag: int, start: int, length: int, n_bytes: int) -> None:
    if tag not in (FLOAT_PIXELS, DOUBLE_PIXELS, PIXEL_DATA):
        return
    if length == UNDEFINED:
        found.pixels = tag, start, -1
        if found.syntax in NATIVE:
            raise _Fault("damaged", "is damaged: its pixel data have no length")
        return
    if length > n_bytes - start:
        raise _Fault(
            "truncated",
            f"is truncated: {length:,} bytes of pixels are declared, it holds {n_bytes - start:,}",
        )
    if found.syntax in COMPRESSED:  # unpacked by a program that did not change what the file declares
        found.syntax = EXPLICIT_LITTLE
    found.pixels = tag, start, length


def text_of(value: Any) -> str:
    """Returns a raw value as text without padding; empty if it is not text."""
    return value.decode("latin-1").strip(" \0") if isinstance(value, bytes) else ""


# `warnings.catch_warnings` is not safe among threads, and `scripts.inspect` reads several volumes at a time.
_one_at_a_time = threading.Lock()


def _free_lock() -> None:
    """Gives a forked process a lock that no thread of its parent holds."""
    global _one_at_a_time
    _one_at_a_time = threading.Lock()


os.register_at_fork(after_in_child=_free_lock)


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Keeps pydicom's warnings from terminal and log: they quote values, and repeat with every file."""
    logger = logging.getLogger("pydicom")
    with _one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        was_disabled, logger.disabled = logger.disabled, True
        try:
            yield
        finally:
            logger.disabled = was_disabled
