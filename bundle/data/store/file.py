"""Reads and writes the file of one stored volume: int16 HU in compressed cubes, each with its own checksum.

    cubes | body map | contrast points | index of the cubes | record (JSON) | trailer

A cube is 32^3 voxels in C order, fewer where the volume ends, packed by blosc2 (LZ4 after bitshuffle;
docs/data-store.md has the table). Its checksum is compared before blosc2 sees it, because blosc2
often returns wrong voxels for a few wrong bytes, without an error. The trailer is written last; a file
without it is unfinished.
"""

import json
import math
import os
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import blosc2
import numpy as np
from zlib_ng import zlib_ng

from bundle.run.files import open_regular

SUFFIX = ".ctpa"
# A file that `prepare` has numbered: the part before the hash is a name for people.
NUMBERED = re.compile(rf"(volume_(\d+))-([0-9a-f]{{32}}{re.escape(SUFFIX)})")
# Part of the trailer and of every key: after a change of format the next run builds all files again.
MAGIC = b"CTPA_HU4"
CUBE = 32  # a patch of 128^3 at any place unpacks 2.0 times its voxels; with 64 it would be 3.4 times
CUBE_BYTES = 2 * CUBE**3
TRAILER = struct.Struct("<QII8s")
INDEX_ENTRY = np.dtype([("offset", "<u8"), ("length", "<u4"), ("checksum", "<u4")])
MAX_RECORD_BYTES = 1 << 20
MIN_PACKED_BYTES = 32  # the head of a blosc2 chunk
# Exceptions that parsing a corrupt file can raise.
UNREADABLE = (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError, struct.error)
PACKING: dict[str, Any] = {
    "codec": blosc2.Codec.LZ4,
    "clevel": 1,
    "filters": [blosc2.Filter.BITSHUFFLE],
    "filters_meta": [0],
    "typesize": 2,
    "blocksize": CUBE_BYTES // 8,  # fits into a core's level-2 cache together with its packed form
    # One thread, because a pool of threads does not survive the fork of a data loading process.
    "nthreads": 1,
}


class StoreError(ValueError):
    """A store, or one of its files, that cannot be used; the message names it."""


class Layout(NamedTuple):
    """Holds what a file says about itself, after its checksums were compared.

    Attributes:
        record: figures of the volume; `shape` is (X, Y, Z).
        cubes: where each cube lies, (X, Y, Z) in cubes, of `INDEX_ENTRY`.
    """

    record: dict[str, Any]
    cubes: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Returns (X, Y, Z) in voxels."""
        x, y, z = self.record["shape"]
        return x, y, z


class Writer:
    """Writes one file in slabs of `CUBE` slices.

    Args:
        file: new file, open for writing.
        shape: (X, Y, Z) in voxels.
    """

    def __init__(self, file: BinaryIO, shape: Sequence[int]) -> None:
        self.file = file
        self.shape = tuple(int(length) for length in shape)
        self.index = np.zeros(cubes_along(self.shape), INDEX_ENTRY)

    def write_slab(self, number: int, slab: np.ndarray) -> None:
        """Packs a slab of slices, which begins at slice `number * CUBE`.

        Args:
            number: of the slab, in any order.
            slab: (X, Y, up to CUBE) int16 in HU.
        """
        for x, y in np.ndindex(*self.index.shape[:2]):
            part = slab[x * CUBE : (x + 1) * CUBE, y * CUBE : (y + 1) * CUBE]
            # Copied in the order of memory first, then transposed inside the processor's cache.
            cube = np.ascontiguousarray(part.copy(order="K"))
            self.index[x, y, number] = self._append(blosc2.compress2(cube, **PACKING))

    def finish(self, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Writes the small arrays, the index, the record and the trailer."""
        sections = {name: self._section(array) for name, array in arrays.items()}
        own = {"shape": self.shape, "sections": sections, "index": self._append(self.index.tobytes())}
        text = json.dumps({**record, **own}).encode()
        offset, length, checksum = self._append(text)
        self.file.write(TRAILER.pack(offset, length, checksum, MAGIC))

    def _section(self, array: np.ndarray) -> dict[str, Any]:
        dtype = array.dtype.newbyteorder("<").str
        return {"place": self._append(array.tobytes()), "shape": array.shape, "dtype": dtype}

    def _append(self, data: bytes) -> tuple[int, int, int]:
        offset = self.file.tell()
        self.file.write(data)
        return offset, len(data), zlib_ng.crc32(data)


def read_layout(path: Path) -> Layout:
    """Reads and checks record and index, a few kB.

    Raises:
        StoreError: if the file is missing, unfinished, of another format or damaged.
    """
    try:
        with open_regular(path) as file:
            return _layout(file)
    except UNREADABLE as error:
        raise StoreError(
            f"{path}: is missing, unfinished or damaged ({error}); delete it and prepare again"
        ) from error


def read_section(path: Path, layout: Layout, name: str) -> np.ndarray:
    """Reads one of the small arrays.

    Raises:
        StoreError: if it is damaged.
    """
    try:
        section = layout.record["sections"][name]
        with open_regular(path) as file:
            data = _checked(file, section["place"])
        if np.dtype(section["dtype"]).kind not in "iu":
            raise ValueError(f"numbers of type {section['dtype']}")
        return np.frombuffer(data, section["dtype"]).reshape(section["shape"])
    except UNREADABLE as error:
        raise StoreError(f"{path}: its {name} is damaged ({error}); delete it and prepare again") from error


def read_box(
    path: Path, layout: Layout, start: Sequence[int], stop: Sequence[int], source: str
) -> np.ndarray:
    """Unpacks the cubes that a box touches.

    Args:
        path: the file.
        layout: of `read_layout`.
        start: first voxel along X, Y, Z, inside the volume.
        stop: voxel after the last, inside the volume.
        source: what the volume was made from, for the message.

    Returns:
        (X, Y, Z) int16 in HU, C order.

    Raises:
        StoreError: if a cube is damaged.
    """
    box = np.empty([last - first for first, last in zip(start, stop, strict=True)], np.int16)
    ranges = [range(first // CUBE, -(-last // CUBE)) for first, last in zip(start, stop, strict=True)]
    try:
        with open_regular(path, buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            for place in _places(ranges):
                cube = _unpack(_checked(file, layout.cubes[place].item(), size), _extent(place, layout.shape))
                inside, within = _overlap(place, start, stop)
                box[within] = cube[inside]
    except (*UNREADABLE, RuntimeError) as error:
        raise StoreError(
            f"{path}: is damaged ({error}); delete it and prepare its source again, {source}"
        ) from error
    return box


def cubes_along(shape: Sequence[int]) -> tuple[int, ...]:
    """Returns how many cubes a volume has along X, Y, Z."""
    return tuple(-(-int(length) // CUBE) for length in shape)


def _layout(file: BinaryIO) -> Layout:
    size = file.seek(0, os.SEEK_END)
    if size < TRAILER.size:
        raise ValueError("it ends too early")
    file.seek(size - TRAILER.size)
    *place, magic = TRAILER.unpack(file.read(TRAILER.size))
    if magic != MAGIC or place[1] > MAX_RECORD_BYTES:
        raise ValueError("it has no end mark of this format")
    record = json.loads(_checked(file, place))
    if len(record["shape"]) != 3 or not all(type(n) is int and n > 0 for n in record["shape"]):
        raise ValueError("its shape is wrong")
    n_cubes = cubes_along(record["shape"])
    if record["index"][1] != INDEX_ENTRY.itemsize * math.prod(n_cubes):
        raise ValueError("its index does not fit its shape")
    cubes = np.frombuffer(_checked(file, record["index"]), INDEX_ENTRY).reshape(n_cubes)
    if cubes["length"].min() < MIN_PACKED_BYTES or cubes["length"].sum(dtype=np.uint64) > size:
        raise ValueError("its index declares other cubes than it can hold")
    return Layout(record, cubes)


def _checked(file: BinaryIO, place: Sequence[int], size: int | None = None) -> bytes:
    """Reads bytes and compares their checksum; never more than the file holds, whatever the index says."""
    offset, length, checksum = place
    if offset + length > (os.fstat(file.fileno()).st_size if size is None else size):
        raise ValueError(f"bytes {offset} to {offset + length} lie past its end")
    data = os.pread(file.fileno(), length, offset)
    if zlib_ng.crc32(data) != checksum:
        raise ValueError(f"wrong checksum of bytes {offset} to {offset + length}")
    return data


def _unpack(data: bytes, extent: Sequence[int]) -> np.ndarray:
    cube = np.empty(extent, np.int16)
    n_bytes, _, n_packed = struct.unpack_from("<III", data, 4)
    if n_bytes != cube.nbytes or n_packed != len(data):
        raise ValueError("a cube of another size")
    blosc2.decompress2(data, dst=cube, nthreads=1)
    return cube


def _extent(place: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    """Returns the size of a cube in voxels; the last cube of each axis ends with the volume."""
    return tuple(min(CUBE, length - number * CUBE) for number, length in zip(place, shape, strict=True))


def _places(ranges: Sequence[range]) -> Iterable[tuple[int, int, int]]:
    return ((x, y, z) for z in ranges[2] for y in ranges[1] for x in ranges[0])


def _overlap(
    place: Sequence[int], start: Sequence[int], stop: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Returns which part of a cube a box needs, and where it goes in the box."""
    inside, within = [], []
    for number, first, last in zip(place, start, stop, strict=True):
        origin = number * CUBE
        low, high = max(first, origin), min(last, origin + CUBE)
        inside.append(slice(low - origin, high - origin))
        within.append(slice(low - first, high - first))
    return tuple(inside), tuple(within)
