"""Chooses where patches are: anywhere, on the body, around contrast agent, or on a grid over the volume."""

import itertools
import logging
from collections.abc import Sequence

import numpy as np

from bundle.data.store.body import body_share
from bundle.data.store.stored_volume import StoredVolume

logger = logging.getLogger(__name__)

MIN_BODY_SHARE = 0.5
MAX_TRIES = 50
MAX_NAMED = 10


class PatchPlacer:
    """Draws where a patch begins.

    Args:
        patch_size: voxels along X, Y, Z.
        foreground_ratio: share of the patches that are placed on the body: at least half of each is body.
        vessel_ratio: share of the patches centred on a voxel of 150 to 1000 HU in a heart chamber or a filled
            vessel of the chest (see `bundle.data.store.vessels`), or as near to it as the border allows. The
            remaining patches are placed anywhere.
    """

    def __init__(
        self, patch_size: Sequence[int], foreground_ratio: float = 0.0, vessel_ratio: float = 0.0
    ) -> None:
        self.patch_size = tuple(patch_size)
        self.foreground_ratio, self.vessel_ratio = foreground_ratio, vessel_ratio

    def draw(self, generator: np.random.Generator, volume: StoredVolume) -> tuple[int, ...]:
        """Draws the first voxel (X, Y, Z) of a patch; it is 0 along axes that are shorter than the patch.

        In a volume without contrast agent a patch for vessels is placed on the body. If no place that was
        tried has enough body, the one with the most is taken.
        """
        room = np.maximum(np.subtract(volume.shape, self.patch_size), 0)
        if self.foreground_ratio + self.vessel_ratio == 0:
            return _anywhere(generator, room)
        kind = generator.random()
        if kind >= self.vessel_ratio + self.foreground_ratio:
            return _anywhere(generator, room)
        body, contrast = volume.body_map()
        if kind < self.vessel_ratio and len(contrast):
            voxel = contrast[generator.integers(len(contrast))].astype(int)
            return tuple(np.clip(voxel - np.array(self.patch_size) // 2, 0, room).tolist())
        return self._on_body(generator, room, body, volume.shape)

    def _on_body(
        self, generator: np.random.Generator, room: np.ndarray, body: np.ndarray, shape: Sequence[int]
    ) -> tuple[int, ...]:
        size = np.minimum(self.patch_size, shape)
        best: tuple[int, ...] = (0, 0, 0)
        most = -1.0
        for _ in range(MAX_TRIES):
            start = _anywhere(generator, room)
            share = body_share(body, np.array(start), size)
            if share >= MIN_BODY_SHARE:
                return start
            if share > most:
                best, most = start, share
        return best


def warn_of_missing_contrast(volumes: Sequence[StoredVolume], vessel_ratio: float) -> None:
    """Warns once of volumes that have no filled vessel to draw patches from.

    Raises:
        StoreError: if a file is damaged.
    """
    without = [str(volume.case["image"]) for volume in volumes if len(volume.body_map().contrast) == 0]
    if without:
        logger.warning(
            "%d of %d volumes show no vessel filled with contrast agent, so their share `vessel_ratio` = %g "
            "of patches is placed on the body; leave them out if all should be angiograms: %s",
            *(len(without), len(volumes), vessel_ratio),
            ", ".join(without[:MAX_NAMED]) + (", ..." if len(without) > MAX_NAMED else ""),
        )


def grid_starts(shape: Sequence[int], patch_size: Sequence[int]) -> list[tuple[int, ...]]:
    """Returns the first voxels of the fewest patches that cover a volume; the last ones end where it ends.

    Args:
        shape: of the volume in voxels.
        patch_size: in voxels; an axis shorter than the patch gets one patch, at 0.
    """
    axes = []
    for length, size in zip(shape, patch_size, strict=True):
        last = max(length - size, 0)
        axes.append(sorted({min(start, last) for start in range(0, length, size)}))
    return list(itertools.product(*axes))


def _anywhere(generator: np.random.Generator, room: np.ndarray) -> tuple[int, ...]:
    return tuple(int(generator.integers(free + 1)) for free in room.tolist())
