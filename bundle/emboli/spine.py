"""Finds the spine of a chest, whose marrow can be as bright and as even as blood.

In the venous phase blood has about 200 HU, and so have vertebrae. They differ from vessels in their place:
behind every vertebra lies a bony arch that is denser than blood, with lung to its left and right but not in
front of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

CELL_MM = 2.5
"""Voxels are averaged to cells of about this edge, so that noise is not dense."""
DENSE, DENSER_BY_HU = 1.35, 80
"""The arch is denser than blood by this factor, and by these HU."""
STRIP_MM = 12
"""Half width of the strip around the midline in which the arch is looked for."""
MAX_BEND_MM = 25
BESIDE_MM = 25, 70
IN_FRONT_MM = 36
BODY_MM = 46
"""How far the front of a vertebra lies in front of the middle of its arch; 34 to 45 in five scans."""
SPINE_HALF_MM, RIBS_HALF_MM = 20, 50
RIBS_MM = 8
MIN_LUNG_BESIDE, MAX_LUNG_IN_FRONT = 0.1, 0.05
MIN_SLICES = 0.25


class Spine(NamedTuple):
    """Where the middle of the vertebral arch lies in each axial slice.

    Attributes:
        x: (Z,) voxels.
        y: (Z,) voxels.
        spacing_mm: edges of a voxel.
    """

    x: np.ndarray
    y: np.ndarray
    spacing_mm: tuple[float, float, float]

    def zone(self, box: Sequence[slice]) -> np.ndarray:
        """Tells where in a box of the volume spine and ribs lie, (x, y, z); an aorta can reach into it."""
        x, y, z = (np.arange(part.start, part.stop) for part in box)
        aside = np.abs(x[:, None] - self.x[z])[:, None] * self.spacing_mm[0]
        front = (y[:, None] - self.y[z])[None] * self.spacing_mm[1]
        spine = (aside <= SPINE_HALF_MM) & (front <= BODY_MM)
        ribs = (aside <= RIBS_HALF_MM) & (front <= RIBS_MM)
        zone: np.ndarray = spine | ribs
        return zone


def find_spine(
    voxels: np.ndarray, spacing_mm: Sequence[float], lungs: np.ndarray, blood_hu: float
) -> Spine | None:
    """Finds the spine; None where the volume shows none between two lungs, as a crop.

    Args:
        voxels: (X, Y, Z) int16 in HU, RAS axes.
        spacing_mm: edges of a voxel.
        lungs: bool samples of the volume, evenly spaced from its first voxel on.
        blood_hu: HU of blood with contrast agent.
    """
    steps = [max(round(CELL_MM / edge), 1) for edge in spacing_mm]
    cells = _averaged(voxels, steps)
    edge_mm = [step * edge for step, edge in zip(steps, spacing_mm, strict=True)]
    dense = cells > max(DENSE * blood_hu, blood_hu + DENSER_BY_HU)
    body = np.flatnonzero((cells > -300).mean(axis=(0, 2)) > 0.02)
    if not len(body) or not dense.any():
        return None
    dense[:, (body[0] + body[-1]) // 2 :] = False
    x = _midline(dense, edge_mm)
    aside = np.abs(np.arange(cells.shape[0])[:, None] - x) * edge_mm[0]
    in_strip = (dense & (aside <= STRIP_MM)[:, None]).sum(axis=0).astype(float)
    in_strip = _smooth(in_strip, 50 / edge_mm[2], axis=1)
    share = np.cumsum(in_strip, axis=0) / np.maximum(in_strip.sum(axis=0), 1e-9)
    y = (share < 0.5).sum(axis=0)  # the median
    if not _lies_between_lungs(_resampled(lungs, cells.shape), x, y, edge_mm):
        return None
    of_slice = np.arange(voxels.shape[2]) // steps[2]
    at = [(cell[of_slice] + 0.5) * step for cell, step in zip((x, y), steps[:2], strict=True)]
    return Spine(at[0], at[1], (spacing_mm[0], spacing_mm[1], spacing_mm[2]))


def _averaged(voxels: np.ndarray, steps: Sequence[int]) -> np.ndarray:
    """Averages blocks of voxels, those at the border padded, slab by slab along z; float32."""
    shape = [-(-size // step) for size, step in zip(voxels.shape, steps, strict=True)]
    cells = np.empty(shape, np.float32)
    missing = [(0, n * step - size) for n, step, size in zip(shape, steps, voxels.shape[:2], strict=False)]
    for k in range(shape[2]):
        slab = voxels[..., k * steps[2] : (k + 1) * steps[2]].clip(-200, 1500).mean(axis=2, dtype=np.float32)
        blocks = np.pad(slab, missing, mode="edge").reshape(shape[0], steps[0], shape[1], steps[1])
        cells[..., k] = blocks.mean(axis=(1, 3))
    return cells


def _midline(dense: np.ndarray, edge_mm: Sequence[float]) -> np.ndarray:
    """Returns the x at which most dense cells lie, for each slice, smoothly bent."""
    found = _smooth(_smooth(dense.sum(axis=1).astype(float), 60 / edge_mm[2], 1), 25 / edge_mm[0], 0)
    middle, reach = int(found.sum(axis=1).argmax()), max(round(MAX_BEND_MM / edge_mm[0]), 1)
    first = max(middle - reach, 0)
    return _smooth(first + found[first : middle + reach + 1].argmax(axis=0).astype(float), 40 / edge_mm[2], 0)


def _smooth(values: np.ndarray, width: float, axis: int) -> np.ndarray:
    smooth: np.ndarray = ndimage.uniform_filter1d(values, max(round(width), 1) | 1, axis, mode="nearest")
    return smooth


def _lies_between_lungs(lungs: np.ndarray, x: np.ndarray, y: np.ndarray, edge_mm: Sequence[float]) -> bool:
    """Tells whether in enough slices lung lies to the left and the right, and none in front of the arch."""
    aside = (np.arange(lungs.shape[0])[:, None] - x)[:, None] * edge_mm[0]
    front = (np.arange(lungs.shape[1])[:, None] - y)[None] * edge_mm[1]
    near, far = BESIDE_MM
    in_body = (np.abs(aside) <= STRIP_MM) & (front >= 0) & (front <= IN_FRONT_MM)
    level = (front >= 0) & (front <= BODY_MM)
    shares = [
        (lungs & place).sum(axis=(0, 1)) / np.maximum(place.sum(axis=(0, 1)), 1)
        for place in (
            in_body,
            level & (aside >= near) & (aside <= far),
            level & (-aside >= near) & (-aside <= far),
        )
    ]
    found = (shares[0] < MAX_LUNG_IN_FRONT) & (np.minimum(*shares[1:]) > MIN_LUNG_BESIDE)
    return bool(found.mean() >= MIN_SLICES)


def _resampled(mask: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Returns the nearest sample of every cell of another even grid over the same volume."""
    index = [((np.arange(n) + 0.5) * size / n).astype(int) for n, size in zip(shape, mask.shape, strict=True)]
    return mask[np.ix_(*index)]
