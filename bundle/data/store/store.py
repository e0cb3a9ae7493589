"""Keeps every volume once in compressed cubes, from which a patch is read in milliseconds.

A .nii.gz can only be unpacked from its start, so a patch out of 604 slices would take seconds.
X, Y, Z run to the right, anterior and superior (nearest file axes; flips and permutations, no resampling).
"""

import hashlib
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import PathLike
from tqdm import tqdm

from bundle.data.store.file import MAGIC, NUMBERED, SUFFIX, StoreError, read_layout
from bundle.data.store.packing import pack_volume, source_state
from bundle.data.store.stored_volume import StoredVolume, stored_volume
from bundle.data.store.window_counts import window_key, write_counts
from bundle.data.volumes.formats import VolumeError, format_of, read_header
from bundle.data.volumes.values import Judgement, judge_volumes
from bundle.distributed.collectives import on_first_rank
from bundle.distributed.ranks import is_first, rank, wait_for_ranks, world_size
from bundle.run.atomic import free_bytes, remove_leftovers
from bundle.run.lock import locked
from bundle.run.names import counted

__all__ = ["PatchStore", "StoreError", "StoredVolume"]

logger = logging.getLogger(__name__)

# Share of the raw int16 size: real CT takes 0.42 to 0.52, pure noise a little more than 1.
EXPECTED_RATIO = 0.6


class PatchStore:
    """Makes the files of a store, finds them again, and reads patches from them.

    A file is named by a hash of its source's path, size and time of change, so a changed source gets a new
    file. An unfinished or damaged file is made again. Several processes may prepare the same store: one of
    them makes a file while the others wait for it. A store holds no open file, so it may be pickled and
    forked.

    Args:
        cache_dir: folder of the files, about 1 byte per voxel (140 MB for 512 x 512 x 604), made if missing.
            It may be deleted between runs.
        option: the option that sets the folder, for the advice in errors.
    """

    def __init__(self, cache_dir: PathLike, option: str = "--cache_dir") -> None:
        self.cache_dir = Path(cache_dir).expanduser()
        self.option = option

    def prepare(
        self,
        cases: Iterable[Mapping[str, Any]],
        window: tuple[float, float] = (-1000, 1000),
        show_progress: bool = True,
    ) -> list[StoredVolume]:
        """Makes the files that are missing, with a progress bar; ranks that work together share them.

        Args:
            cases: items with `image`, the path of a volume or of a file of a store, which is taken as it is;
                other entries are carried along.
            window: HU window whose outside is counted on the way.
            show_progress: whether to draw a bar.

        Returns:
            One stored volume per case, in the same order.

        Raises:
            VolumeError: see `bundle.data.volumes.reading.read_volume`.
            StoreError: if the folder cannot be written or is too small, or if a given file is damaged.
        """
        cases = list(cases)
        numbered = self._numbered()
        paths = [self._path_of(case["image"], numbered) for case in cases]
        missing = {
            path: case["image"]
            for path, case in zip(paths, cases, strict=True)
            if not is_sound(path, case["image"])
        }
        on_first_rank(lambda: self._reserve(missing.values()) if missing else None)
        # shares of all paths: by now another rank may have made some of those that are missing here
        mine = set(sorted(set(paths))[rank() :: world_size()])
        self._make_files({path: missing[path] for path in missing if path in mine}, window, show_progress)
        wait_for_ranks()
        # what other ranks made lies elsewhere if each machine has a cache of its own
        left = {path: image for path, image in missing.items() if not is_sound(path, image)}
        self._make_files(left, window, show_progress)
        wait_for_ranks()
        logger.info(
            "patch store %s: reused %s, made %d",
            self.cache_dir,
            counted(len(cases) - len(missing), "volume"),
            len(missing),
        )
        return [self._stored(path, case) for path, case in zip(paths, cases, strict=True)]

    def judge(self, cases: Iterable[Mapping[str, Any]]) -> Judgement:
        """Judges NIfTI files and packed volumes by their values, without making a file; leaves out others.

        Args:
            cases: see `prepare`.

        Raises:
            VolumeError: if there is no such volume.
            StoreError: if a given file of a store is damaged.
        """
        numbered = self._numbered()
        packed, other = [], []
        for case in cases:
            path = self._path_of(case["image"], numbered)
            if is_sound(path, case["image"]):
                packed.append(stored_volume(path, case))
            else:
                other.append(case["image"])
        judgement = judge_volumes(other)
        doubts = [f"{volume.case['image']}: {volume.doubt}" for volume in packed if volume.doubt]
        return judgement._replace(doubts=[*judgement.doubts, *doubts])

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
            (X, Y, Z) int16 in HU, a new array.

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
        """Returns the file of a volume, whether it exists yet or not.

        Raises:
            VolumeError: if there is no such volume.
        """
        return self._path_of(image, self._numbered())

    def number_files(self, paths: Iterable[Path]) -> dict[Path, Path]:
        """Renames files of the store to `volume_0001-<hash>.ctpa` and so on, as short names for people.

        One process at a time does it. Another one may hold the names from before; it finds the files.

        Args:
            paths: files of the store, in the order of their numbers; a file that has a number keeps it, also
                one that another process has given in the meantime.

        Returns:
            the new path of each.
        """
        renamed = {}
        with locked(self.cache_dir / "numbers"):
            numbered = self._numbered()
            known = [NUMBERED.fullmatch(path.name) for path in numbered.values()]
            number = max((int(found[2]) for found in known if found), default=0)
            for path in paths:
                is_new = not NUMBERED.fullmatch(path.name) and path.name not in numbered
                number += is_new
                new = path.with_name(f"volume_{number:04d}-{path.name}") if is_new else path
                renamed[path] = numbered.get(path.name, new)
                if renamed[path] != path:
                    _rename_all(path, renamed[path])
        return renamed

    def _numbered(self) -> dict[str, Path]:
        """Lists the files that have a number, by the rest of their names."""
        if not self.cache_dir.is_dir():
            return {}
        found = ((NUMBERED.fullmatch(name), name) for name in os.listdir(self.cache_dir))
        return {match[3]: self.cache_dir / name for match, name in found if match}

    def _path_of(self, image: PathLike, numbered: Mapping[str, Path]) -> Path:
        source = Path(image)
        if is_prepared(source):
            return source
        if not source.exists():
            read_header(source)  # says what is wrong with it
        try:
            state = source_state(source)
        except OSError as error:  # it is just being changed, or may not be read
            raise VolumeError(
                f"{source}: cannot be read ({error.strerror}); check it", "unreadable"
            ) from error
        key = hashlib.sha256(repr((MAGIC, state)).encode()).hexdigest()
        name = f"{key[:32]}{SUFFIX}"
        return numbered.get(name, self.cache_dir / name)

    def _present(self, path: Path) -> Path:
        """Returns where a file is now, since another process may have renamed it by adding a number."""
        return path if path.exists() else self._numbered().get(path.name, path)

    def _stored(self, path: Path, case: Mapping[str, Any]) -> StoredVolume:
        try:
            return stored_volume(path, case)
        except StoreError:
            if self._present(path) == path:
                raise
            return stored_volume(self._present(path), case)

    def _reserve(self, images: Iterable[PathLike]) -> None:
        """Checks every header and the room on the disk before the first file is made."""
        images = list(images)
        shapes = [read_header(image).shape for image in images]
        masks = judge_volumes(images).masks
        if masks and len(images) == 1:
            raise VolumeError(masks[0], "mask")
        if masks:
            raise VolumeError(
                "\n  ".join([f"{len(masks)} of {len(images)} volumes are not CT:", *masks]), "mask"
            )
        needed = EXPECTED_RATIO * sum(2 * math.prod(shape) for shape in shapes)
        remove_leftovers(self.cache_dir)  # first, since the leftovers of a kill may be what fills the disk
        free = self._free_bytes()
        if needed > free:
            raise StoreError(
                f"{self.cache_dir}: about {needed / 1e9:.1f} GB are needed for "
                f"{counted(len(shapes), 'volume')}, {free / 1e9:.1f} GB are free; make room or give another "
                f"{self.option}"
            )
        logger.info(
            "patch store %s: packing %s, about %.1f GB, once; later runs reuse them. "
            "`python -m scripts.prepare` does it beforehand, several at a time",
            *(self.cache_dir, counted(len(shapes), "volume"), needed / 1e9),
        )

    def _free_bytes(self) -> int:
        try:
            self.cache_dir.mkdir(parents=True, exist_ok=True)
            return free_bytes(self.cache_dir)
        except OSError as error:
            raise StoreError(
                f"{self.cache_dir}: cannot be used ({error.strerror}); give another {self.option}"
            ) from error

    def _make_files(
        self, missing: Mapping[Path, PathLike], window: tuple[float, float], show_progress: bool
    ) -> None:
        has_bar = bool(missing) and show_progress and is_first()
        for path in tqdm(missing, "patch store", unit="volume", disable=None if has_bar else True):
            self._make_file(path, missing[path], window)

    def _make_file(self, path: Path, image: PathLike, window: tuple[float, float]) -> None:
        try:
            with locked(path):
                if is_sound(self._present(path), image):  # another process has made it in the meantime
                    return
                packed = pack_volume(path, image, *window)
                write_counts(path, {window_key(*window): packed})
        except OSError as error:
            if not os.path.exists(image):
                raise VolumeError(
                    f"{image}: disappeared while it was being read; bring it back", "unreadable"
                ) from error
            raise StoreError(
                f"{path.parent}: writing failed ({error.strerror or error}); make room or give another "
                f"{self.option}"
            ) from error


def _rename_all(path: Path, new: Path) -> None:
    """Renames a file of the store; files beside it go first."""
    for suffix in (".json", ".voxels", SUFFIX):
        with suppress(FileNotFoundError):
            os.replace(path.with_suffix(suffix), new.with_suffix(suffix))


def is_sound(path: Path, image: PathLike) -> bool:
    """Tells whether a file is complete; raises for a damaged one that was given as a volume itself."""
    try:
        read_layout(path)
    except StoreError:
        if is_prepared(image):
            raise
        return False
    return True


def is_prepared(image: PathLike) -> bool:
    """Tells whether patches can be read from a volume where it lies."""
    found = format_of(Path(image))
    return found is not None and found.is_prepared
