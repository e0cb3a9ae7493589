"""Finds invented emboli: dark spots in filled vessels that the original does not have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from bundle.emboli.chest import WALL_STEP_MM, Lumen
from bundle.emboli.inserted import CLOT_HU

SCALES_MM = (4.0, 6.0)
NEW_DARKNESS = 0.35
OFF_WALL_MM = 1.0
SLAB_MM = 40.0


class FalseEmbolus(NamedTuple):
    """A new dark spot: its darkest voxel (X, Y, Z), and its contrast as a share of a clot's."""

    voxel: tuple[int, int, int]
    strength: float


def find_false_emboli(
    voxels: np.ndarray, recon: np.ndarray, spacing_mm: Sequence[float], lumen: Lumen
) -> list[FalseEmbolus]:
    """Finds spots in the lumen that a reconstruction darkened and that are darker than the blood around them.

    At one scale s, two conditions must hold. The local mean (Gaussian of s / 4, lumen only) fell by at least
    0.35 of a clot's contrast against the blood there. And it lies at least as far below the mean of the wider
    surroundings (Gaussian of s / 1.5). The first condition alone would count blurred walls, the second alone
    every valve and papillary muscle. Voxels less than 1 mm from the wall are ignored.

    Args:
        voxels: original (X, Y, Z) in HU.
        recon: reconstruction of the same shape.
        spacing_mm: edges of a voxel.
        lumen: filled vessels of the original.

    Returns:
        one entry per connected spot.
    """
    found = np.zeros(lumen.wall.shape, np.float32)
    core = lumen.wall >= round(OFF_WALL_MM / WALL_STEP_MM)
    x, y, z = lumen.box
    margin = int(np.ceil(3 * max(SCALES_MM) / 1.5 / spacing_mm[2]))
    n_slices = max(int(SLAB_MM / spacing_mm[2]), 1)
    for start in range(0, core.shape[2], n_slices):
        wide = slice(max(start - margin, 0), min(start + n_slices + margin, core.shape[2]))
        if not core[..., wide].any():
            continue
        part = np.s_[x, y, z.start + wide.start : z.start + wide.stop]
        strength = _strength(voxels[part], recon[part], core[..., wide], spacing_mm)
        kept = strength[..., start - wide.start :][..., :n_slices]
        found[..., start : start + kept.shape[2]] = kept
    spots, n_spots = ndimage.label(found >= NEW_DARKNESS, structure=np.ones((3, 3, 3)))
    places = ndimage.maximum_position(found, spots, range(1, n_spots + 1)) if n_spots else []
    return [
        FalseEmbolus(
            (int(at[0]) + x.start, int(at[1]) + y.start, int(at[2]) + z.start), float(found[tuple(at)])
        )
        for at in places
    ]


def _strength(
    original: np.ndarray, recon: np.ndarray, core: np.ndarray, spacing_mm: Sequence[float]
) -> np.ndarray:
    """Returns the smaller of darkening and darkness against the surroundings, at the best scale."""
    weight = core.astype(np.float32)
    strongest = np.zeros(core.shape, np.float32)
    old, new = (volume.astype(np.float32) * weight for volume in (original, recon))
    for scale in SCALES_MM:
        near, far = ([ratio * scale / edge for edge in spacing_mm] for ratio in (1 / 4, 1 / 1.5))
        norm_near, norm_far = (_smooth(weight, sigma) + 1e-6 for sigma in (near, far))
        low_old, low_new = _smooth(old, near) / norm_near, _smooth(new, near) / norm_near
        blood, around = _smooth(old, far) / norm_far, _smooth(new, far) / norm_far
        contrast = np.maximum(blood - CLOT_HU, CLOT_HU)
        strength = np.minimum(low_old - low_new, around - low_new) / contrast
        strongest = np.maximum(strongest, strength)
    return np.where(core, strongest, np.float32(0))


def _smooth(volume: np.ndarray, sigma: Sequence[float]) -> np.ndarray:
    smooth: np.ndarray = ndimage.gaussian_filter(volume, sigma, mode="constant", truncate=3)
    return smooth
