"""Packs a volume into a file of the store while the volume is still being read."""

import hashlib
import os
import queue
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import PathLike

from bundle.data.store.body import STEP, Outside, count_in_body, map_body
from bundle.data.store.file import CUBE, Writer
from bundle.data.volumes.fingerprint import voxel_fingerprint
from bundle.data.volumes.formats import VolumeHeader, read_header, required_format
from bundle.data.volumes.header_text import header_as_text
from bundle.data.volumes.reading import Volume, read_volume
from bundle.data.volumes.values import Values
from bundle.run.atomic import complete_or_absent
from bundle.run.names import ANY_NAME

INT16 = np.iinfo(np.int16)
# Free text, which may hold names and dates.
TEXT_FIELDS = ("data_type", "db_name", "descrip", "aux_file", "intent_name")


def pack_volume(path: Path, image: PathLike, hu_min: float, hu_max: float) -> Outside:
    """Reads a volume once, turns it to RAS axes and writes its file; the file appears when it is complete.

    Args:
        path: the file to write.
        image: NIfTI file or DICOM series.
        hu_min: lower end of the window whose outside is counted.
        hu_max: upper end.

    Returns:
        The counts of voxels outside the window.

    Raises:
        VolumeError: see `bundle.data.volumes.reading.read_volume`; or if the volume is a mask.
    """
    header = read_header(image)
    orientation = nib.io_orientation(header.affine)
    affine = header.affine @ nib.orientations.inv_ornt_aff(orientation, header.shape)
    shape = tuple(header.shape[axis] for axis in np.argsort(orientation[:, 0]))
    samples = np.empty([-(-length // STEP) for length in shape], np.int16)
    minimum, maximum, n_below, n_above = INT16.max, INT16.min, 0, 0
    values = Values()
    # Written, not memory-mapped: on a full disk a write raises, but a map kills the process.
    with complete_or_absent(path) as unfinished, unfinished.open("xb") as file:
        writer = Writer(file, shape)
        whole = np.empty((0, 0, 0), np.int16)
        for number, slab, whole in _slabs(image, header, orientation, values):  # noqa: B007
            writer.write_slab(number, slab)
            samples[..., number * CUBE // STEP :][..., : -(-slab.shape[2] // STEP)] = slab[
                ::STEP, ::STEP, ::STEP
            ]
            voxels = _in_memory_order(slab)
            minimum, maximum = min(minimum, int(voxels.min())), max(maximum, int(voxels.max()))
            n_below += int(np.count_nonzero(voxels < hu_min)) if minimum < hu_min else 0
            n_above += int(np.count_nonzero(voxels > hu_max)) if maximum > hu_max else 0
        values.require_scan(image)
        figures = {"minimum": minimum, "maximum": maximum, "doubt": values.doubt}
        record = _record(image, header, orientation, affine) | figures
        record["voxel_fingerprint"] = voxel_fingerprint(whole)  # the last slab came when all was read
        writer.finish(record, map_body(samples, record["spacing_mm"])._asdict())
    return Outside(n_below, n_above, *count_in_body(samples, hu_min, hu_max))


def source_state(image: PathLike) -> list[tuple[str, int, int]]:
    """Returns path, size and time of change of a volume's file, or of each file of a DICOM series."""
    source = Path(image).absolute()
    states = [(str(path), path.stat()) for path in required_format(source).source_files(source)]
    return [(name, state.st_size, state.st_mtime_ns) for name, state in states]


def source_hash(image: PathLike) -> str:
    """Returns a hash of a volume's path, which tells files apart without naming them."""
    return hashlib.sha256(str(Path(image).absolute()).encode(errors=ANY_NAME)).hexdigest()


def _record(
    image: PathLike, header: VolumeHeader, orientation: np.ndarray, affine: np.ndarray
) -> dict[str, Any]:
    geometry = header.header.copy()
    for field in TEXT_FIELDS:
        geometry[field] = b""
    header_text, header_class = header_as_text(geometry)
    state = os.stat(image)
    return {
        "source_sha256": source_hash(image),
        "source_bytes": state.st_size,
        "source_mtime_ns": state.st_mtime_ns,
        "spacing_mm": np.linalg.norm(affine[:3, :3], axis=0).tolist(),
        "affine": affine.tolist(),
        "source_shape": list(header.shape),
        "source_affine": header.affine.tolist(),
        "source_header": header_text,
        "source_header_class": header_class,
        "source_byte_order": geometry.endianness,
        "orientation": orientation.astype(int).tolist(),
    }


def _slabs(
    image: PathLike, header: VolumeHeader, orientation: np.ndarray, values: Values
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields slabs of the volume in RAS axes as soon as the file has been read that far.

    Each comes with its number, and with the whole volume, whose other slices may still be missing.
    """
    done: queue.SimpleQueue[tuple[np.ndarray, int]] = queue.SimpleQueue()
    size_z = header.shape[int(np.argwhere(orientation[:, 0] == 2)[0, 0])]
    needed = {number: _slices_needed(number, header, orientation) for number in range(-(-size_z // CUBE))}
    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(read_volume, image, on_slices=lambda voxels, n: done.put((voxels, n)))
        reading.add_done_callback(lambda reading: done.put(_all_of(reading)))
        voxels, n_read = done.get()
        for number in sorted(needed, key=lambda number: needed[number]):
            while n_read < needed[number]:
                voxels, n_read = done.get()
            if not voxels.size:
                reading.result()  # raises what ended the reading
            whole = nib.apply_orientation(voxels, orientation)
            slab = whole[..., number * CUBE : (number + 1) * CUBE]
            values.add(_in_memory_order(slab))  # before rounding, which would make a mask of [0, 1]
            if slab.dtype != np.int16:
                with np.errstate(invalid="ignore"):  # the reader refuses NaN when it has read all
                    slab = np.clip(np.rint(slab), INT16.min, INT16.max).astype(np.int16)
            yield number, slab, whole
        reading.result()  # a wrong checksum shows only at the end


def _in_memory_order(voxels: np.ndarray) -> np.ndarray:
    """Returns the same voxels in the order of memory, which makes counting them several times as fast."""
    forward = tuple(slice(None, None, -1 if stride < 0 else 1) for stride in voxels.strides)
    return voxels[forward].transpose(np.argsort(np.abs(voxels.strides))[::-1])


def _slices_needed(number: int, header: VolumeHeader, orientation: np.ndarray) -> int:
    """Returns how many slices of the file must be read before a slab is complete."""
    n_slices = header.shape[2]
    axis, direction = orientation[2]
    if axis != 2:
        return n_slices
    return min((number + 1) * CUBE, n_slices) if direction > 0 else n_slices - number * CUBE


def _all_of(reading: "Future[Volume]") -> tuple[np.ndarray, int]:
    """Returns all slices, to end the wait for them; after an error an empty array, and `result` raises it."""
    if reading.exception() is None:
        voxels = reading.result().voxels
        return voxels, voxels.shape[2]
    return np.empty((0, 0, 0), np.int16), 1 << 62
