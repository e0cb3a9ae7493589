"""Measures how sharp a reconstruction is: slopes everywhere, and the width of the edge at the lung's wall."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

MAX_EDGE_SLICES = 64
MAX_EDGES_PER_SLICE = 200
REACH_MM = 5.0
STEP_MM = 0.1
PLATEAU_MM = 2.0
"""Length at either end of a profile that counts as lung, and as the tissue behind its wall."""
GRADIENT_MM = 1.0
AIR_BELOW_HU, TISSUE_ABOVE_HU = -700, -100
"""What a profile must reach on either side to be an edge between lung and soft tissue."""


class EdgeWidth(NamedTuple):
    """Holds the distance over which HU rise from 10 to 90 % at the lung's wall, in mm; medians over edges."""

    original_mm: float
    recon_mm: float
    n_edges: int


def gradient_ratio(
    image: np.ndarray,
    recon: np.ndarray,
    inside: np.ndarray,
    spacing_mm: Sequence[float],
    hu_min: float,
    hu_max: float,
) -> float:
    """Divides the mean gradient of a reconstruction by that of its original; below 1 is smoother.

    Gradients are central differences in space, in HU per mm, of the volumes clipped to the window.

    Args:
        image: original (X, Y, Z) in HU.
        recon: reconstruction of the same shape.
        inside: (X, Y, Z), above 0 where to look, as inside the body; made from the original only.
        spacing_mm: edges of a voxel.
        hu_min: lower end of the window.
        hu_max: upper end.

    Returns:
        The ratio; NaN if the original is flat or a side is shorter than 3 voxels.
    """
    if min(image.shape) < 3:
        return float("nan")
    totals = [0.0, 0.0]
    for z in range(1, image.shape[2] - 1):
        kept = inside[1:-1, 1:-1, z] > 0
        for n, volume in enumerate((image, recon)):
            three = volume[..., z - 1 : z + 2].astype(np.float32).clip(hu_min, hu_max)
            squares = [
                three[2:, 1:-1, 1] - three[:-2, 1:-1, 1],
                three[1:-1, 2:, 1] - three[1:-1, :-2, 1],
                three[1:-1, 1:-1, 2] - three[1:-1, 1:-1, 0],
            ]
            length = np.sqrt(sum((s / (2 * mm)) ** 2 for s, mm in zip(squares, spacing_mm, strict=True)))
            totals[n] += float(length[kept].sum(dtype=np.float64))
    return totals[1] / totals[0] if totals[0] > 0 else float("nan")


def edge_width(
    image: np.ndarray, recon: np.ndarray, lung: np.ndarray, spacing_mm: Sequence[float]
) -> EdgeWidth | None:
    """Measures how wide the lung's wall is drawn, across it in the axial plane.

    Profiles run along the gradient of the original and must rise from lung to soft tissue in it; both volumes
    are read along the same lines.

    Args:
        image: original (X, Y, Z) in HU, RAS axes.
        recon: reconstruction of the same shape.
        lung: (X, Y, Z) bool; made from the original only.
        spacing_mm: edges of a voxel.

    Returns:
        The widths; None if there is no such edge.
    """
    widths: list[tuple[float, float]] = []
    slices = np.flatnonzero(lung.any(axis=(0, 1)))
    picked = np.linspace(0, len(slices) - 1, min(len(slices), MAX_EDGE_SLICES)).round().astype(int)
    for z in slices[picked]:
        lines = _lines(image[..., z], lung[..., z], spacing_mm)
        old, new = (_profiles(volume[..., z], lines) for volume in (image, recon))
        is_edge = (_start(old) <= AIR_BELOW_HU) & (_end(old) >= TISSUE_ABOVE_HU)
        widths += zip(_rises_mm(old[is_edge]), _rises_mm(new[is_edge]), strict=True)
    sides = np.array(widths).reshape(-1, 2)
    sides = sides[np.isfinite(sides).all(axis=1)]
    if not len(sides):
        return None
    original_mm, recon_mm = np.median(sides, axis=0).tolist()
    return EdgeWidth(original_mm, recon_mm, len(sides))


def _lines(hu: np.ndarray, lung: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Returns (2, N, P) positions in voxels: N lines across the lung's wall, from the lung outwards."""
    border = np.argwhere(lung & ~ndimage.binary_erosion(lung, border_value=1))
    border = border[
        np.linspace(0, len(border) - 1, min(len(border), MAX_EDGES_PER_SLICE)).round().astype(int)
    ]
    limited = hu.clip(-1000, 200).astype(np.float32)
    sigma = [GRADIENT_MM / edge for edge in spacing_mm[:2]]
    slopes = [
        ndimage.gaussian_filter(limited, sigma, order=order)[tuple(border.T)] / edge
        for order, edge in zip(((1, 0), (0, 1)), spacing_mm[:2], strict=True)
    ]
    length = np.maximum(np.hypot(*slopes), 1e-6)
    at_mm = np.arange(-REACH_MM, REACH_MM + STEP_MM / 2, STEP_MM)
    return np.stack(
        [
            border[:, axis, None] + (slope / length)[:, None] * at_mm / edge
            for axis, (slope, edge) in enumerate(zip(slopes, spacing_mm[:2], strict=True))
        ]
    )


def _profiles(hu: np.ndarray, lines: np.ndarray) -> np.ndarray:
    """Returns (N, P) intensities along lines."""
    profiles: np.ndarray = ndimage.map_coordinates(hu.astype(np.float32), lines, order=1, mode="nearest")
    return profiles


def _start(profiles: np.ndarray) -> np.ndarray:
    return profiles[:, : round(PLATEAU_MM / STEP_MM)].mean(axis=1)


def _end(profiles: np.ndarray) -> np.ndarray:
    return profiles[:, -round(PLATEAU_MM / STEP_MM) :].mean(axis=1)


def _rises_mm(profiles: np.ndarray) -> np.ndarray:
    """Returns (N,) mm between the crossings of 10 and 90 % that are nearest to the crossing of 50 %."""
    if not len(profiles):
        return np.empty(0)
    low, high = _start(profiles)[:, None], _end(profiles)[:, None]
    share = (profiles - low) / np.where(high > low, high - low, np.nan)
    middle = np.argmax(share >= 0.5, axis=1)
    at = np.arange(share.shape[1])
    before = np.where((share <= 0.1) & (at < middle[:, None]), at, -1).max(axis=1)
    after = np.where((share >= 0.9) & (at >= middle[:, None]), at, len(at)).min(axis=1)
    is_whole = (before >= 0) & (after < len(at)) & (middle > 0)
    rises = np.full(len(profiles), np.nan)
    rows = np.flatnonzero(is_whole)
    first, last = before[rows], after[rows]
    crossings = []
    for level, left in ((0.1, first), (0.9, last - 1)):
        below, above = share[rows, left], share[rows, left + 1]
        crossings.append(left + (level - below) / (above - below))
    rises[rows] = (crossings[1] - crossings[0]) * STEP_MM
    return rises
