"""Tells whether a volume carries a grid: power at periods of two and four voxels, where decoders draw one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

PERIODS = (2, 4)
"""In voxels: a decoder that doubles the resolution twice leaves grids with these periods."""
MIN_SIDE = 48
"""A shorter axis has too few frequencies between those of the two grids."""
SEGMENT = 128
"""Voxels per spectrum; longer axes are cut into segments."""
SLAB_LINES = 2**14
"""Lines of voxels whose spectra are in memory at a time: some 30 MB."""
_NEAR = 4
"""Frequencies on each side of a grid's frequency that tell what power is usual there."""
_GAP = 2
"""The window spreads a line over this many frequencies on either side."""


def grid_score(
    volume: Tensor, device: torch.device | str | None = None, axes: Sequence[int] = (0, 1, 2)
) -> float:
    """Measures how far a grid stands out of a volume's spectrum; 1 means that nothing does.

    Along each axis, power is averaged over all lines of voxels. The score at a period of 2 or 4 voxels is the
    largest power of the three frequencies around it, divided by the usual power nearby. At a period of 2 that
    is the median of the frequencies below. At a period of 4 it is the geometric mean of the medians on both
    sides, because power falls steeply with frequency. White noise scores 1, seven real CT volumes scored 1.1
    to 1.5, a grid scores far more. A blurred volume passes too, so read the score beside `gradient_ratio`.
    Memory does not grow with the volume.

    Args:
        volume: (X, Y, Z), any unit, integer or float, any device.
        device: where spectra are computed; None is where `volume` is.
        axes: along which to look.

    Returns:
        The largest score of both periods and all these axes, if they have at least 48 voxels. Where the usual
        power is 0 (a constant volume), it is 1 without a grid and inf with one. NaN if a voxel is NaN, or if
        all axes are shorter than 48 voxels.

    Raises:
        ValueError: if `volume` is not 3D.
    """
    if volume.ndim != 3:
        raise ValueError(
            f"`volume` must be a volume (X, Y, Z), got {tuple(volume.shape)}; drop the other axes first"
        )
    long = [axis for axis in axes if volume.shape[axis] >= MIN_SIDE]
    scores = [score for axis in long for score in _scores(_mean_power(volume, axis, device or volume.device))]
    return max(scores) if scores and not any(map(math.isnan, scores)) else math.nan


def _mean_power(volume: Tensor, axis: int, device: torch.device | str) -> Tensor:
    """Returns the mean power of all segments along `axis`, (frequencies,) float64 on the CPU."""
    size = volume.shape[axis]
    length = min(SEGMENT, size - size % 4)  # so that a quarter of a cycle is one of the frequencies
    window = torch.hann_window(length, device=device)
    across = max((other for other in range(3) if other != axis), key=lambda other: volume.shape[other])
    lines = volume.numel() // size // volume.shape[across]
    thickness = max(1, SLAB_LINES // max(1, lines))
    total, count = torch.zeros(length // 2 + 1, dtype=torch.float64, device=device), 0
    for first in range(0, volume.shape[across], thickness):
        slab = volume.detach().narrow(across, first, min(thickness, volume.shape[across] - first))
        for start in range(0, size - length + 1, length):
            segments = slab.narrow(axis, start, length).movedim(axis, -1).reshape(-1, length)
            segments = segments.to(device, torch.float32)
            segments = (segments - segments.mean(dim=-1, keepdim=True)) * window
            total += torch.fft.rfft(segments).abs().square().sum(dim=0, dtype=torch.float64)
            count += len(segments)
    return (total / count).cpu()


def _scores(power: Tensor) -> list[float]:
    last = len(power) - 1
    scores = []
    for period in PERIODS:
        at = 2 * last // period
        around = power[at - 1 : at + 2] if period > 2 else power[at - 2 :]
        nearby = [power[at - _GAP - _NEAR : at - _GAP], power[at + _GAP + 1 : at + _GAP + 1 + _NEAR]]
        medians = [float(side.quantile(0.5)) for side in nearby if len(side)]
        scores.append(_ratio(float(around.max()), math.prod(medians) ** (1 / len(medians))))
    return scores


def _ratio(peak: float, usual: float) -> float:
    if usual == 0:
        return 1.0 if peak == 0 else math.inf
    return peak / usual
