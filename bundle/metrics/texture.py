"""Measures whether a reconstruction keeps the noise of its original: how much of it, and how fine.

A radiologist recognises a smoothed CT by its noise. Squares of even tissue in axial slices are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BANDS = ("low", "middle", "high")
"""Thirds of the spatial frequencies up to Nyquist's."""
SIDES = (24, 16, 12)
MAX_SQUARES = 200


class NoiseSpectrum(NamedTuple):
    """Holds the noise of both volumes in the same squares.

    Attributes:
        frequency_per_mm: (F,) middle of each ring of frequencies, cycles per mm.
        original: (F,) mean power of the original there, HU^2 mm^2.
        recon: (F,) of the reconstruction.
        nps_ratio: reconstruction over original in each of `BANDS`; 1 is perfect.
        noise_sd_ratio: the same for the standard deviations.
        n_squares: squares that were compared.
    """

    frequency_per_mm: np.ndarray
    original: np.ndarray
    recon: np.ndarray
    nps_ratio: dict[str, float]
    noise_sd_ratio: float
    n_squares: int


def noise_spectrum(
    image: np.ndarray, recon: np.ndarray, even: np.ndarray, spacing_mm: Sequence[float]
) -> NoiseSpectrum | None:
    """Compares the radial noise power spectra of two volumes in squares of even tissue.

    The best-fitting plane is subtracted from every square, so that a gradient of contrast agent is not noise.
    A Hann window keeps the strong low frequencies from leaking into the high ones.
    Paper: Boedeker et al. 2007, doi:10.1088/0031-9155/52/14/003.

    Args:
        image: original (X, Y, Z) in HU.
        recon: reconstruction of the same shape.
        even: (X, Y, Z) bool, where the tissue is even, as inside the aorta; made from the original only.
        spacing_mm: edges of a voxel; the in-plane ones are taken as equal.

    Returns:
        The spectra; None if no square of 12 voxels fits, or the original has no noise there.
    """
    side, squares = _find_squares(even)
    if not squares:
        return None
    power = [
        np.mean([_power(volume, square, side) for square in squares], axis=0) for volume in (image, recon)
    ]
    if power[0].sum() == 0:
        return None
    frequency = np.fft.fftfreq(side, spacing_mm[0])
    radius = np.hypot(frequency[:, None], frequency[None, :])
    nyquist = 0.5 / spacing_mm[0]
    ring = np.minimum(np.rint(radius * side * spacing_mm[0]).astype(int), side)
    inside = (radius <= nyquist * (1 + 1e-9)) & (ring > 0)
    rings = np.unique(ring[inside])
    curves = [np.array([one[inside & (ring == n)].mean() for n in rings]) for one in power]
    band = np.minimum((3 * radius / nyquist).astype(int), len(BANDS) - 1)
    sums = [[one[inside & (band == n)].sum() for n in range(len(BANDS))] for one in power]
    scale = spacing_mm[0] * spacing_mm[1] / side**2
    return NoiseSpectrum(
        rings / (side * spacing_mm[0]),
        curves[0] * scale,
        curves[1] * scale,
        {name: _ratio(new, old) for name, old, new in zip(BANDS, *sums, strict=True)},
        float(np.sqrt(_ratio(float(power[1].sum()), float(power[0].sum())))),
        len(squares),
    )


def _find_squares(even: np.ndarray) -> tuple[int, list[tuple[int, int, int]]]:
    """Returns the largest side that fits anywhere, and corners (x, y, z) of squares that do not overlap."""
    for side in SIDES:
        found = [corner for z in range(even.shape[2]) for corner in _squares_of_slice(even[..., z], side, z)]
        if found:
            picked = np.linspace(0, len(found) - 1, min(len(found), MAX_SQUARES)).round().astype(int)
            return side, [found[n] for n in picked]
    return 0, []


def _squares_of_slice(even: np.ndarray, side: int, z: int) -> list[tuple[int, int, int]]:
    if min(even.shape) < side or np.count_nonzero(even) < side**2:
        return []
    sums = np.pad(even.astype(np.int32).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    total = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    corners: list[tuple[int, int, int]] = []
    for x, y in np.argwhere(total == side**2).tolist():
        if all(abs(x - other[0]) >= side or abs(y - other[1]) >= side for other in corners):
            corners.append((x, y, z))
    return corners


def _power(volume: np.ndarray, corner: tuple[int, int, int], side: int) -> np.ndarray:
    x, y, z = corner
    square = volume[x : x + side, y : y + side, z].astype(np.float64)
    at = np.arange(side) - (side - 1) / 2
    slope_x, slope_y = ((square * line).sum() / (side * (at**2).sum()) for line in (at[:, None], at))
    even = square - square.mean() - slope_x * at[:, None] - slope_y * at
    window = np.hanning(side + 2)[1:-1]
    window = np.outer(window, window) / np.sqrt(np.mean(np.outer(window, window) ** 2))
    power: np.ndarray = np.abs(np.fft.fft2(even * window)) ** 2
    return power


def _ratio(new: float, old: float) -> float:
    return float(new / old) if old > 0 else float("nan")
