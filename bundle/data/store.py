"""Keeps every volume once as an uncompressed int16 memory map, from which patches are cut in milliseconds.

A .nii.gz can only be unpacked from its start: cutting one patch out of 604 slices would cost seconds.
X, Y, Z run to the right, anterior and superior (nearest file axes; flips and permutations, no resampling).
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import PathLike
from tqdm import tqdm

from bundle.data.atomic import complete_or_absent
from bundle.data.header import SUFFIXES, read_header
from bundle.data.volume import read_volume

logger = logging.getLogger(__name__)

# Part of every key: another number makes the next run build its maps anew.
FORMAT = 1
SLAB_Z = 16
INT16 = np.iinfo(np.int16)


class StoreError(ValueError):
    """A cache folder that cannot be used; the message names it."""


@dataclass(frozen=True)
class StoredVolume:
    """One volume of the store.

    Attributes:
        path: the .npy map, (X, Y, Z) int16 in HU; its figures lie beside it as .json.
        shape: (X, Y, Z) in voxels.
        spacing_mm: edges of a voxel along X, Y, Z.
        case: the item of the datalist that it was made from.
    """

    path: Path
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    case: Mapping[str, Any]

    @property
    def name(self) -> str:
        """File name of the source without its suffix."""
        name = Path(self.case["image"]).name
        return next((name[: -len(suffix)] for suffix in SUFFIXES if name.lower().endswith(suffix)), name)

    def read(self) -> np.ndarray:
        """The volume as a read-only map; nothing is read until it is indexed."""
        return np.load(self.path, mmap_mode="r")

    def outside_window(self, hu_min: float, hu_max: float) -> tuple[int, int]:
        """Numbers of voxels below `hu_min` and above `hu_max`; counted once, then kept beside the map."""
        record = json.loads(self.path.with_suffix(".json").read_text())
        window = f"{hu_min:g} to {hu_max:g}"
        if window not in record["outside"]:
            voxels = self.read()
            slabs = [voxels[..., z : z + SLAB_Z] for z in range(0, self.shape[2], SLAB_Z)]
            n_below = sum(int(np.count_nonzero(slab < hu_min)) for slab in slabs)
            n_above = sum(int(np.count_nonzero(slab > hu_max)) for slab in slabs)
            record["outside"][window] = [n_below, n_above]
            _write_record(self.path.with_suffix(".json"), record)
        n_below, n_above = record["outside"][window]
        return n_below, n_above


class PatchStore:
    """Makes the maps, finds them again, and reads patches out of them.

    A map is named by a hash of its source's path, size and time of change; a changed source gets a new one,
    and a damaged map is rebuilt. Several processes may prepare the same store. Safe to pickle and to fork: it
    holds no open file.

    Args:
        cache_dir: folder of the maps, 2 bytes per voxel (317 MB for 512 x 512 x 604), made if missing. It may
            be deleted between runs.
    """

    def __init__(self, cache_dir: PathLike) -> None:
        self.cache_dir = Path(cache_dir).expanduser()

    def prepare(self, cases: Iterable[Mapping[str, Any]]) -> list[StoredVolume]:
        """Makes the maps that are missing, with a progress bar.

        Args:
            cases: items with `image`, a path; other entries are carried along.

        Returns:
            one stored volume per case, in the same order.

        Raises:
            VolumeError: see `bundle.data.volume.read_volume`.
            StoreError: if the folder cannot be written or is too small.
        """
        cases = list(cases)
        paths = [self._map_path(case["image"]) for case in cases]
        missing = {
            path: case["image"] for path, case in zip(paths, cases, strict=True) if _record(path) is None
        }
        if missing:
            self._reserve(missing.values())
        for path, image in tqdm(
            missing.items(), "patch store", unit="volume", disable=None if missing else True
        ):
            _make_map(path, image)
        logger.info(
            "patch store %s: %d volumes reused, %d made",
            self.cache_dir,
            len(cases) - len(missing),
            len(missing),
        )
        return [_stored_volume(path, case) for path, case in zip(paths, cases, strict=True)]

    def read_patch(
        self, case: StoredVolume, start: Sequence[int], size: Sequence[int], pad_value: int = -1024
    ) -> np.ndarray:
        """Cuts a patch out of a volume.

        Args:
            case: volume of `prepare`.
            start: first voxel along X, Y, Z.
            size: voxels along X, Y, Z; what lies past the end of the volume is padded.
            pad_value: HU of the padding.

        Returns:
            (X, Y, Z) int16 in HU, an array of its own.

        Raises:
            ValueError: if `start` lies outside the volume.
        """
        if any(not 0 <= first < length for first, length in zip(start, case.shape, strict=True)):
            raise ValueError(f"`start` must lie inside the volume {case.shape}, got {tuple(start)}")
        box = tuple(slice(first, first + length) for first, length in zip(start, size, strict=True))
        patch = np.array(case.read()[box], order="C")
        padding = [(0, length - present) for length, present in zip(size, patch.shape, strict=True)]
        return np.pad(patch, padding, constant_values=pad_value) if any(map(any, padding)) else patch

    def _map_path(self, image: PathLike) -> Path:
        source = Path(image).absolute()
        if not source.is_file():
            read_header(source)  # says what is wrong with it
        state = source.stat()
        key = f"{FORMAT}\n{source}\n{state.st_size}\n{state.st_mtime_ns}"
        return self.cache_dir / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"

    def _reserve(self, images: Iterable[PathLike]) -> None:
        """Checks every header and the room on the disk before the first map is made."""
        shapes = [read_header(image).shape for image in images]
        needed = sum(2 * int(np.prod(shape)) for shape in shapes)
        try:
            self.cache_dir.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.cache_dir).free
        except OSError as error:
            raise StoreError(
                f"{self.cache_dir}: cannot be used ({error.strerror}); set another `cache_dir`"
            ) from error
        if needed > free:
            raise StoreError(
                f"{self.cache_dir}: {needed / 1e9:.1f} GB are needed for {len(shapes)} volumes, "
                f"{free / 1e9:.1f} GB are free; set another `cache_dir` or a smaller `max_patients`"
            )
        logger.info(
            "patch store %s: unpacking %d volumes, %.1f GB, once; later runs reuse them",
            *(self.cache_dir, len(shapes), needed / 1e9),
        )


def _make_map(path: Path, image: PathLike) -> None:
    """Writes the map, then its record: a record says that the map is complete."""
    volume = read_volume(image)
    orientation = nib.io_orientation(volume.affine)
    affine = volume.affine @ nib.orientations.inv_ornt_aff(orientation, volume.voxels.shape)
    voxels = nib.apply_orientation(volume.voxels, orientation)
    minimum, maximum = INT16.max, INT16.min
    # Written and not mapped: on a full disk a write raises, a map kills the process.
    with complete_or_absent(path) as unfinished, unfinished.open("xb") as file:
        description = {"descr": "<i2", "fortran_order": True, "shape": voxels.shape}
        np.lib.format.write_array_header_1_0(file, description)
        for z in range(0, voxels.shape[2], SLAB_Z):
            slab = voxels[..., z : z + SLAB_Z]
            if slab.dtype != np.int16:
                slab = np.clip(np.rint(slab), INT16.min, INT16.max).astype(np.int16)
            minimum, maximum = min(minimum, int(slab.min())), max(maximum, int(slab.max()))
            file.write(slab.astype("<i2", copy=False).tobytes(order="F"))
    state = os.stat(image)
    record = {
        "source_sha256": hashlib.sha256(str(Path(image).absolute()).encode()).hexdigest(),
        "source_bytes": state.st_size,
        "source_mtime_ns": state.st_mtime_ns,
        "shape": list(voxels.shape),
        "spacing_mm": np.linalg.norm(affine[:3, :3], axis=0).tolist(),
        "affine": affine.tolist(),
        "minimum": minimum,
        "maximum": maximum,
        "outside": {},
    }
    _write_record(path.with_suffix(".json"), record)


def _write_record(path: Path, record: Mapping[str, Any]) -> None:
    with complete_or_absent(path) as unfinished:
        unfinished.write_text(json.dumps(record, indent=2))


def _record(path: Path) -> dict[str, Any] | None:
    """The record of a complete map; None if map or record is missing or damaged."""
    try:
        record = json.loads(path.with_suffix(".json").read_text())
        voxels = np.load(path, mmap_mode="r")
        whole = (
            voxels.dtype == np.int16
            and list(voxels.shape) == record["shape"]
            and len(record["spacing_mm"]) == 3
        )
        return record if whole and isinstance(record["outside"], dict) else None
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return None


def _stored_volume(path: Path, case: Mapping[str, Any]) -> StoredVolume:
    record = _record(path)
    if record is None:
        raise StoreError(f"{path}: vanished while the store was prepared; start again")
    return StoredVolume(path, tuple(record["shape"]), tuple(record["spacing_mm"]), dict(case))
