"""Reads the pixels of slices as HU: stored value x slope + intercept.

Tags about display (photometric interpretation, windows, tables of values) never change the values.
Uncompressed pixels are read here. Compressed ones go to GDCM, which would apply some of these tags. So it
gets the pixels in a new file whose header says only what decoding needs (see `gdcm_process`).
"""

import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID

from bundle.data.dicom.header import (
    DicomError,
    DicomHeader,
)
from bundle.data.dicom.parsing import COMPRESSED, EXPLICIT_BIG, PIXEL_DATA, UNDEFINED, open_data_set
from bundle.data.dicom.screening import AIR_HU, SECONDARY_CAPTURE, padding_range

PROGRAM = Path(__file__).with_name("gdcm_process.py")
# A slice takes milliseconds; JPEG 2000 on a busy machine may take a second.
SLICE_SECONDS = 30
ITEM, SEQUENCE_END = 0xFFFEE000, 0xFFFEE0DD
CORNERS = np.ix_((0, -1), (0, -1))


def read_slices_hu(headers: Sequence[DicomHeader]) -> Generator[np.ndarray, None, None]:
    """Reads the slices of a series one by one; close it if you stop early.

    Args:
        headers: of the slices, checked by `bundle.data.dicom.screening`.

    Yields:
        (rows, columns) in HU: whole numbers if slope and intercept are whole, else float64.

    Raises:
        DicomError: naming the file that cannot be read or decoded.
    """
    with ExitStack() as stack:
        decoder = None
        for path, of_file in groupby(headers, key=lambda header: header.path):
            slices = list(of_file)
            with _reading(path), open_data_set(path, slices[0].transfer_syntax) as file:
                if slices[0].transfer_syntax not in COMPRESSED:
                    yield from (_hu(header, _native_cells(header, file)) for header in slices)
                    continue
                decoder = decoder or stack.enter_context(closing(_Decoder()))
                frames = _frames(slices[0], file)
                for header in slices:
                    packed = [_read(path, file, *fragment) for fragment in frames[header.frame]]
                    yield _hu(header, decoder.decode(header, b"".join(packed)))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DicomError(
            f"{path}: can no longer be read ({error.strerror or error}); run it again on a copy that stays",
            "unreadable",
        ) from error


def _native_cells(header: DicomHeader, file: BinaryIO) -> np.ndarray:
    """Returns (rows, columns) of uncompressed pixels as they lie in the file, unused bits included."""
    shape = header.number("rows"), header.number("columns")
    kind = "u" if header.pixel_tag == PIXEL_DATA else "f"
    order = ">" if header.transfer_syntax == EXPLICIT_BIG else "<"
    dtype = np.dtype(f"{order}{kind}{header.number('bits_allocated') // 8}")
    n_bytes = shape[0] * shape[1] * dtype.itemsize
    content = _read(header.path, file, header.pixel_start + header.frame * n_bytes, n_bytes)
    return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _read(path: Path, file: BinaryIO, start: int, n_bytes: int) -> bytes:
    file.seek(start)
    content = file.read(n_bytes)
    if len(content) < n_bytes:
        raise DicomError(f"{path}: is truncated: it ends in its pixels; copy it again", "truncated")
    return content


def _hu(header: DicomHeader, cells: np.ndarray) -> np.ndarray:
    (slope,), (intercept,) = header.numbers("slope"), header.numbers("intercept")
    if cells.dtype.kind == "u" and header.number("is_signed"):
        cells = cells.view(f"i{cells.dtype.itemsize}")
    stored = _lowest_bits(cells, header.number("bits_stored"))
    if stored.dtype.kind == "f" or not (slope.is_integer() and intercept.is_integer()):
        hu: np.ndarray = stored.astype(np.float64) * slope + intercept
    else:
        exact = np.int32 if stored.dtype.itemsize <= 2 else np.int64
        hu = stored.astype(exact) * int(slope) + int(intercept)
    padding = padding_range(header)
    if padding:
        is_padding = _is_within(stored, padding) | _is_within(cells, padding)
        # a value in all of a slice except its corners was measured, even if the header calls it padding
        if is_padding[CORNERS].any():
            hu[is_padding] = np.minimum(hu[is_padding], AIR_HU)
    return hu


def _lowest_bits(cells: np.ndarray, bits: int) -> np.ndarray:
    """Returns the numbers in the lowest bits of the cells; other bits may hold anything; 0 = all bits."""
    unused = 8 * cells.dtype.itemsize - bits
    return cells if cells.dtype.kind == "f" or not bits or unused <= 0 else (cells << unused) >> unused


def _is_within(values: np.ndarray, limits: tuple[int, int]) -> np.ndarray:
    return (values >= limits[0]) & (values <= limits[1])


class _Decoder:
    """Runs a process that decodes the compressed slices of one series."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            # -P: its folder holds modules of ours that are not meant to be imported by bare names
            [sys.executable, "-P", str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # a terminal sends Ctrl-C to all processes; the slice being decoded would seem damaged
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.communicate()

    def decode(self, header: DicomHeader, packed: bytes) -> np.ndarray:
        """Decodes the compressed bytes of a slice to its stored values, (rows, columns).

        Raises:
            DicomError: if it cannot be decoded.
        """
        timer = threading.Timer(SLICE_SECONDS, self.process.kill)
        timer.start()
        try:
            answer = self._ask(_file_of_pixels(header, packed))
        except BrokenPipeError:
            answer = {}
        finally:
            timer.cancel()
        shape = header.number("rows"), header.number("columns")
        if len(answer.get("pixels", b"")) == shape[0] * shape[1] * answer.get("itemsize", 0) > 0:
            return np.frombuffer(answer["pixels"], answer["dtype"]).reshape(shape)
        what = answer.get("error", "the decoder did not survive it")
        raise DicomError(
            f"{header.path}: its pixels are damaged and cannot be decoded ({what}); copy it again, or export "
            "the series uncompressed",
            "damaged",
        )

    def _ask(self, content: bytes) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(struct.pack("<Q", len(content)) + content)
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline() or "{}")
        if "dtype" in answer:
            answer["itemsize"] = np.dtype(answer["dtype"]).itemsize
            answer["pixels"] = self.process.stdout.read(answer["size"] * answer["itemsize"])
        return answer


def _frames(header: DicomHeader, file: BinaryIO) -> list[list[tuple[int, int]]]:
    """Returns start and length of the fragments of each frame of an open file."""
    file.seek(header.pixel_start)
    try:
        return _find_frames(file, header.n_frames)
    except (ValueError, struct.error) as error:
        raise DicomError(
            f"{header.path}: its pixels are damaged: their parts do not make {header.n_frames} frames; "
            "copy it again",
            "damaged",
        ) from error


def _find_frames(file: BinaryIO, n_frames: int) -> list[list[tuple[int, int]]]:
    """Finds start and length of each frame's fragments (DICOM PS3.5, A.4), always little endian.

    Args:
        file: open where the value of the pixel data begins.
        n_frames: frames that the file declares.

    Raises:
        ValueError: if the fragments do not make that many frames.
        struct.error: if the file ends before them.
    """
    fragments: list[tuple[int, int]] = []
    n_bytes = os.fstat(file.fileno()).st_size
    while True:
        group, element, length = struct.unpack("<HHI", file.read(8))
        if group << 16 | element == SEQUENCE_END:
            break
        if group << 16 | element != ITEM or length == UNDEFINED or length > n_bytes - file.tell():
            raise ValueError("something other than fragments")
        fragments.append((file.tell(), length))
        file.seek(length, os.SEEK_CUR)
    (table_start, table_length), *fragments = fragments
    if n_frames == 1 and fragments:
        return [fragments]
    if len(fragments) == n_frames:
        return [[fragment] for fragment in fragments]
    file.seek(table_start)
    offsets = struct.unpack(f"<{n_frames}I", file.read(table_length))
    numbers = {start - fragments[0][0]: number for number, (start, _) in enumerate(fragments)}
    firsts = [numbers.get(offset, -1) for offset in offsets]
    ends = [*firsts[1:], len(fragments)]
    if firsts[0] != 0 or any(first >= end for first, end in zip(firsts, ends, strict=True)):
        raise ValueError("frames that do not begin with a fragment each, one after the other")
    return [fragments[first:end] for first, end in zip(firsts, ends, strict=True)]


def _file_of_pixels(header: DicomHeader, packed: bytes) -> bytes:
    """Returns a DICOM file of one compressed frame that says no more than a decoder needs."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(SECONDARY_CAPTURE), UID("1.2.3")
    meta.TransferSyntaxUID = UID(header.transfer_syntax)
    buffer = BytesIO()
    file = FileDataset(buffer, {}, b"\0" * 128, meta, is_implicit_VR=False, is_little_endian=True)
    file.SOPClassUID, file.SOPInstanceUID = SECONDARY_CAPTURE, "1.2.3"
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.Rows, file.Columns = header.number("rows"), header.number("columns")
    file.BitsAllocated = header.number("bits_allocated")
    file.BitsStored = header.number("bits_stored", file.BitsAllocated)
    file.HighBit = file.BitsStored - 1
    file.PixelRepresentation = header.number("is_signed")
    items = struct.pack("<HHI", 0xFFFE, 0xE000, 0)
    items += struct.pack("<HHI", 0xFFFE, 0xE000, len(packed) + len(packed) % 2) + packed
    file.add_new(0x7FE00010, "OB", items + b"\0" * (len(packed) % 2))
    file["PixelData"].is_undefined_length = True
    file.save_as(buffer)
    return buffer.getvalue()
