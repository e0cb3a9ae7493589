"""Keeps every volume once in compressed cubes, from which patches are cut in milliseconds.

A .nii.gz can only be unpacked from its start: cutting one patch out of 604 slices would cost seconds.
X, Y, Z run to the right, anterior and superior (nearest file axes; flips and permutations, no resampling).
"""

import hashlib
import logging
import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import PathLike
from tqdm import tqdm

from bundle.data.store.file import MAGIC, SUFFIX, StoreError, read_layout
from bundle.data.store.packing import pack_volume, source_state
from bundle.data.store.stored_volume import StoredVolume, stored_volume
from bundle.data.store.window_counts import window_key, write_counts
from bundle.data.volumes.formats import VolumeError, read_header
from bundle.run.atomic import remove_leftovers

__all__ = ["PatchStore", "StoreError", "StoredVolume"]

logger = logging.getLogger(__name__)

# Of the raw int16 size: real CT takes 0.42 to 0.52, noise that cannot be packed a little more than 1.
EXPECTED_RATIO = 0.6


class PatchStore:
    """Makes the files, finds them again, and reads patches out of them.

    A file is named by a hash of its source's path, size and time of change; a changed source gets a new one,
    and an unfinished or damaged one is made again. Several processes may prepare the same store. Safe to
    pickle and to fork: it holds no open file.

    Args:
        cache_dir: folder of the files, about 1 byte per voxel (140 MB for 512 x 512 x 604), made if missing.
            It may be deleted between runs.
    """

    def __init__(self, cache_dir: PathLike) -> None:
        self.cache_dir = Path(cache_dir).expanduser()

    def prepare(
        self,
        cases: Iterable[Mapping[str, Any]],
        window: tuple[float, float] = (-1000, 1000),
        show_progress: bool = True,
    ) -> list[StoredVolume]:
        """Makes the files that are missing, with a progress bar.

        Args:
            cases: items with `image`, the path of a volume or of a file of a store, which is taken as it is;
                other entries are carried along.
            window: HU window whose outside is counted on the way.
            show_progress: whether to draw a bar.

        Returns:
            one stored volume per case, in the same order.

        Raises:
            VolumeError: see `bundle.data.volumes.reading.read_volume`.
            StoreError: if the folder cannot be written or is too small, or if a given file is damaged.
        """
        cases = list(cases)
        paths = [self.path_of(case["image"]) for case in cases]
        missing = {
            path: case["image"]
            for path, case in zip(paths, cases, strict=True)
            if not is_sound(path, case["image"])
        }
        if missing:
            self._reserve(missing.values())
        for path, image in tqdm(
            missing.items(), "patch store", unit="volume", disable=None if missing and show_progress else True
        ):
            _make_file(path, image, window)
        logger.info(
            "patch store %s: %d volumes reused, %d made",
            self.cache_dir,
            len(cases) - len(missing),
            len(missing),
        )
        return [stored_volume(path, case) for path, case in zip(paths, cases, strict=True)]

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
            StoreError: if the file is damaged; the message names it and what it was made from.
        """
        if any(not 0 <= first < length for first, length in zip(start, case.shape, strict=True)):
            raise ValueError(f"`start` must lie inside the volume {case.shape}, got {tuple(start)}")
        stop = [min(first + n, length) for first, n, length in zip(start, size, case.shape, strict=True)]
        patch = case.read_box(start, stop)
        padding = [(0, length - present) for length, present in zip(size, patch.shape, strict=True)]
        return np.pad(patch, padding, constant_values=pad_value) if any(map(any, padding)) else patch

    def path_of(self, image: PathLike) -> Path:
        """The file of a volume, whether it exists yet or not.

        Raises:
            VolumeError: if there is no such volume.
        """
        source = Path(image)
        if source.suffix == SUFFIX:
            return source
        if not source.exists():
            read_header(source)  # says what is wrong with it
        try:
            state = source_state(source)
        except OSError as error:  # it is being changed, or may not be read
            raise VolumeError(
                f"{source}: cannot be read ({error.strerror}); check it", "unreadable"
            ) from error
        key = hashlib.sha256(repr((MAGIC, state)).encode()).hexdigest()
        return self.cache_dir / f"{key[:32]}{SUFFIX}"

    def _reserve(self, images: Iterable[PathLike]) -> None:
        """Checks every header and the room on the disk before the first file is made."""
        shapes = [read_header(image).shape for image in images]
        needed = EXPECTED_RATIO * sum(2 * math.prod(shape) for shape in shapes)
        remove_leftovers(self.cache_dir)  # first: after a kill they may be what fills the disk
        free = free_bytes(self.cache_dir)
        if needed > free:
            raise StoreError(
                f"{self.cache_dir}: about {needed / 1e9:.1f} GB are needed for {len(shapes)} volumes, "
                f"{free / 1e9:.1f} GB are free; set another `cache_dir` or a smaller `max_patients`"
            )
        logger.info(
            "patch store %s: packing %d volumes, about %.1f GB, once; later runs reuse them. "
            "`python -m scripts.prepare` does it beforehand, several at a time",
            *(self.cache_dir, len(shapes), needed / 1e9),
        )


def free_bytes(folder: Path) -> int:
    """Room on the disk of a folder, which is made if missing; StoreError if it cannot be used."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(folder).free
    except OSError as error:
        raise StoreError(f"{folder}: cannot be used ({error.strerror}); set another `cache_dir`") from error


def is_sound(path: Path, image: PathLike) -> bool:
    """Whether a file is complete; a file of a store that was given as a volume must be."""
    try:
        read_layout(path)
    except StoreError:
        if Path(image).suffix == SUFFIX:
            raise
        return False
    return True


def _make_file(path: Path, image: PathLike, window: tuple[float, float]) -> None:
    try:
        packed = pack_volume(path, image, *window)
        write_counts(path, {window_key(*window): tuple(packed)})
    except OSError as error:
        if not os.path.exists(image):
            raise VolumeError(f"{image}: went away while it was being read", "unreadable") from error
        raise StoreError(
            f"{path.parent}: writing failed ({error.strerror or error}); make room or set another `cache_dir`"
        ) from error
