"""Judges a volume by its values: a CT in HU holds air near -1000, a mask only a few whole numbers from 0 up.

No other rule judges values: inspecting, preparing, preflight and training all use this one.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from monai.config import PathLike

from bundle.data.volumes.formats import VolumeError, format_of
from bundle.data.volumes.reading import read_volume

NO_AIR_ABOVE_HU = -300
SOFT_TISSUE_HU = 0
# An 8-bit picture has as many; TotalSegmentator has 117 labels.
MAX_MASK_VALUES = 256
# If 1024 was added, air is near 0 and calcium above 1024. In a CT without air, fat is still below -100.
SHIFTED = (-100, 1024)
SLAB_Z = 32
N_THREADS = 4
_COUNTED_BELOW = 1 << 16


class Values:
    """Summary of a volume's values; they are added part by part.

    Attributes:
        minimum: lowest value.
        maximum: highest value.
    """

    def __init__(self) -> None:
        self.minimum, self.maximum = np.inf, -np.inf
        self._is_whole = True
        self._different: set[float] = set()

    def add(self, part: np.ndarray) -> None:
        """Adds a part of the volume, of any shape, which should be in HU."""
        self.minimum = min(self.minimum, float(part.min()))
        self.maximum = max(self.maximum, float(part.max()))
        if self.minimum < 0 or not self._is_whole or len(self._different) > MAX_MASK_VALUES:
            return
        if part.dtype.kind == "f":
            self._is_whole = bool((np.rint(part) == part).all())
        if self._is_whole and part.max() < _COUNTED_BELOW:
            self._different.update(np.flatnonzero(np.bincount(part.astype(np.int64).ravel())).tolist())
        elif self._is_whole:
            self._different.update(np.unique(part).tolist())

    @property
    def is_plausible(self) -> bool:
        """Tells whether air and soft tissue were seen; no further part can then raise a doubt."""
        return self.minimum <= NO_AIR_ABOVE_HU and self.maximum >= SOFT_TISSUE_HU

    @property
    def is_mask(self) -> bool:
        """Tells whether all values are whole numbers from 0 up, with at most 256 different ones."""
        return self._is_whole and self.minimum >= 0 and len(self._different) <= MAX_MASK_VALUES

    def require_scan(self, path: PathLike) -> None:
        """Refuses a mask.

        Raises:
            VolumeError: if the volume is a mask; its code is `mask`.
        """
        if self.is_mask:
            raise VolumeError(self.refusal(path), "mask")

    def refusal(self, path: PathLike) -> str:
        """Returns the message by which a mask is refused."""
        return (
            f"{path}: is a mask or an 8-bit picture, not a CT in HU: it holds {len(self._different)} "
            f"different whole numbers from {self.minimum:g} to {self.maximum:g}; leave it out"
        )

    @property
    def doubt(self) -> str:
        """Returns what a person should check before using the volume; empty if nothing is odd."""
        return doubt_of(self.minimum, self.maximum)


def doubt_of(minimum: float, maximum: float) -> str:
    """Says why the values are probably not HU; empty if they may be.

    Args:
        minimum: lowest value of the volume.
        maximum: highest value.
    """
    if -1 <= minimum <= maximum <= 1:
        return (
            f"its values run from {minimum:g} to {maximum:g}, as if scaled to [0, 1] or [-1, 1]; convert the "
            "scan again, in HU"
        )
    if minimum > SHIFTED[0] and maximum > SHIFTED[1]:
        return (
            f"its lowest value is {minimum:g}, as if 1024 had been added to HU; convert the scan again with "
            "its rescale intercept, or subtract 1024"
        )
    if minimum > NO_AIR_ABOVE_HU:
        return (
            f"its lowest value is {minimum:g}, but a CT of the chest holds air near -1000 HU; leave it out "
            "if it is not in HU"
        )
    return ""


class Judgement(NamedTuple):
    """What is odd about volumes: one line for each volume, beginning with its path.

    Attributes:
        masks: volumes that are refused.
        doubts: volumes whose values are probably not HU.
    """

    masks: list[str]
    doubts: list[str]


def judge_volumes(images: Sequence[PathLike]) -> Judgement:
    """Looks at the values of several volumes in parallel; unreadable ones are left to fail later, when used.

    Formats that can only be read as a whole are left out.
    """
    readers = [(path, format_of(path)) for path in map(Path, images)]
    paths = [path for path, reader in readers if reader is not None and reader.calls_on_slices]
    with ThreadPoolExecutor(N_THREADS) as pool:
        looked = list(zip(paths, pool.map(_try_to_look, paths), strict=True))
    found = [(path, values) for path, values in looked if values is not None]
    return Judgement(
        [values.refusal(path) for path, values in found if values.is_mask],
        [f"{path}: {values.doubt}" for path, values in found if values.doubt and not values.is_mask],
    )


def _try_to_look(path: Path) -> Values | None:
    try:
        return look_at_values(path)
    except VolumeError:
        return None


class _Plausible(Exception):
    """Stops reading: the rest of the file cannot raise a doubt."""


def look_at_values(path: PathLike) -> Values:
    """Reads a volume until its values are plausible, which for most scans takes a few slices.

    Args:
        path: see `bundle.data.volumes.reading.read_volume`.

    Raises:
        VolumeError: if the volume cannot be read.
    """
    values = Values()
    n_seen = 0

    def look(voxels: np.ndarray, n_slices: int) -> None:
        nonlocal n_seen
        values.add(voxels[..., n_seen:n_slices])
        n_seen = n_slices
        if values.is_plausible:
            raise _Plausible

    try:
        voxels = read_volume(Path(path), on_slices=look).voxels
        for z in range(n_seen, voxels.shape[2], SLAB_Z):
            look(voxels, min(z + SLAB_Z, voxels.shape[2]))
    except _Plausible:
        pass
    return values
