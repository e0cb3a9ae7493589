"""Describes one volume of the patch store by what its file says."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bundle.data.store.body import STEP, BodyMap, Outside, count_in_body
from bundle.data.store.file import CUBE, UNREADABLE, StoreError, read_box, read_layout, read_section
from bundle.data.store.kept_fingerprint import kept_fingerprint
from bundle.data.store.window_counts import read_counts, window_key, write_counts
from bundle.data.volumes.fingerprint import is_fingerprint
from bundle.data.volumes.values import doubt_of
from bundle.run.names import volume_name


@dataclass(frozen=True)
class StoredVolume:
    """Gives access to one volume of the store.

    Attributes:
        path: its file.
        shape: (X, Y, Z) in voxels.
        spacing_mm: edges of a voxel along X, Y, Z.
        case: the item of the datalist that it was made from.
        doubt: why its values are probably not HU; empty if they may be.
    """

    path: Path
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    case: Mapping[str, Any]
    doubt: str = ""

    @property
    def name(self) -> str:
        """Returns the file name of the source without its suffix."""
        return volume_name(self.case["image"])

    def read(self) -> np.ndarray:
        """Reads the whole volume, (X, Y, Z) int16 in HU, and compares every checksum.

        Raises:
            StoreError: if the file is damaged.
        """
        return read_box(self.path, read_layout(self.path), (0, 0, 0), self.shape, self._source())

    def read_box(self, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        """Reads a box inside the volume, see `bundle.data.store.file.read_box`."""
        return read_box(self.path, read_layout(self.path), start, stop, self._source())

    def body_map(self) -> BodyMap:
        """Reads where the body and the contrast agent are, a few kB.

        Raises:
            StoreError: if the file is damaged.
        """
        layout = read_layout(self.path)
        body, contrast = (read_section(self.path, layout, name) for name in BodyMap._fields)
        if body.ndim != 3 or contrast.ndim != 2 or contrast.shape[1] != 3:
            raise StoreError(f"{self.path}: its maps are damaged; delete it and prepare again")
        return BodyMap(body, contrast)

    def outside_window(self, hu_min: float, hu_max: float) -> Outside:
        """Counts voxels below `hu_min` and above `hu_max` once, then keeps the numbers beside the file."""
        counts = read_counts(self.path)
        key = window_key(hu_min, hu_max)
        if key not in counts:
            n_below = n_above = 0
            samples = []
            for z in range(0, self.shape[2], CUBE):
                stop = (*self.shape[:2], min(z + CUBE, self.shape[2]))
                slab = self.read_box((0, 0, z), stop)
                n_below += int(np.count_nonzero(slab < hu_min))
                n_above += int(np.count_nonzero(slab > hu_max))
                samples.append(slab[::STEP, ::STEP, ::STEP])
            in_body = count_in_body(np.concatenate(samples, axis=2), hu_min, hu_max)
            counts[key] = Outside(n_below, n_above, *in_body)
            write_counts(self.path, counts)
        return counts[key]

    def voxel_fingerprint(self) -> str:
        """Returns `bundle.data.volumes.fingerprint.voxel_fingerprint` of the volume.

        Files made since version 0.2 hold it. For an older file it is computed once and kept beside it.

        Raises:
            StoreError: if the file is damaged.
        """
        known = read_layout(self.path).record.get("voxel_fingerprint")
        return known if is_fingerprint(known) else kept_fingerprint(self.path, self.read)

    def _source(self) -> str:
        return str(self.case["image"])


def stored_volume(path: Path, case: Mapping[str, Any]) -> StoredVolume:
    """Reads what a file says about its volume; StoreError if it is missing or damaged."""
    layout = read_layout(path)
    try:
        x_mm, y_mm, z_mm = map(float, layout.record["spacing_mm"])
        minimum, maximum = int(layout.record["minimum"]), int(layout.record["maximum"])
        doubt = str(layout.record.get("doubt", doubt_of(minimum, maximum)))  # older files do not hold it
        if not all(0 < length < math.inf for length in (x_mm, y_mm, z_mm)):
            raise ValueError("its spacing is wrong")
    except UNREADABLE as error:
        raise StoreError(f"{path}: is damaged ({error}); delete it and prepare again") from error
    return StoredVolume(path, layout.shape, (x_mm, y_mm, z_mm), dict(case), doubt)
