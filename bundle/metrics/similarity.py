"""Computes structural similarity in space and at several scales, slice by slice in constant memory.

Axis letters: X, Y, Z the axes of a volume; H, W the two axes of a slice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch
from monai.metrics.regression import MultiScaleSSIMMetric
from torch import Tensor

from bundle.metrics.reconstruction import WINDOW_SIZE, local_mean, similarity_map

MS_SSIM_SIDE = 176
"""Five scales of an 11 x 11 window need slices of more than 160 voxels; 176 is the next multiple of 16."""


def ssim_3d(image: Tensor, recon: Tensor, hu_min: float, hu_max: float) -> float:
    """Returns the structural similarity over windows of 7 x 7 x 7 voxels, mean over all full windows.

    It equals `skimage.metrics.structural_similarity` of the volumes in HU less `hu_min`, with its defaults.
    Seven slices of means are in memory at a time, some 75 MB at 512 x 512, however many slices there are.
    Paper: Wang et al. 2004, doi:10.1109/TIP.2003.819861, eq. 13 (deviation: uniform window, not Gaussian).

    Args:
        image: original, (X, Y, Z) in HU.
        recon: reconstruction of the same shape.
        hu_min: lower end of the window; both are clipped to it.
        hu_max: upper end; `hu_max - hu_min` is the data range.

    Returns:
        The mean; NaN for fewer than 7 voxels along an axis.
    """
    if min(image.shape) < WINDOW_SIZE:
        return float("nan")
    data_range, total, n_windows = float(hu_max - hu_min), 0.0, 0
    recent: deque[Tensor] = deque(maxlen=WINDOW_SIZE)
    for real, fake in _slices(image, recon, hu_min, hu_max):
        recent.append(local_mean(torch.stack([real, fake, real * fake, real.square() + fake.square()])))
        if len(recent) == WINDOW_SIZE:
            means = torch.stack(tuple(recent)).mean(dim=0)
            similarity = similarity_map(means[0], means[1], means[2], means[3], data_range, WINDOW_SIZE**3)
            total += similarity.sum().item()
            n_windows += similarity.numel()
    return total / n_windows


def ms_ssim_2d(image: Tensor, recon: Tensor, hu_min: float, hu_max: float) -> float:
    """Returns the multi-scale structural similarity of axial slices, mean over slices, shifted to 0..range.

    The implementation is MONAI's: five scales, Gaussian window of 11 x 11.
    Paper: Wang et al. 2003, doi:10.1109/ACSSC.2003.1292216.

    Args:
        image: original, (X, Y, Z) in HU, RAS axes.
        recon: reconstruction of the same shape.
        hu_min: lower end of the window; both are clipped to it.
        hu_max: upper end; `hu_max - hu_min` is the data range.

    Returns:
        The mean; NaN for slices smaller than 176 x 176.
    """
    if min(image.shape[:2]) < MS_SSIM_SIDE:
        return float("nan")
    metric = MultiScaleSSIMMetric(spatial_dims=2, data_range=float(hu_max - hu_min))
    values = [
        metric(fake.float()[None, None], real.float()[None, None]).sum().item()  # type: ignore[union-attr]
        for real, fake in _slices(image, recon, hu_min, hu_max)
    ]
    return sum(values) / len(values)


def _slices(image: Tensor, recon: Tensor, hu_min: float, hu_max: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields pairs of axial slices (H, W), float64, from 0 to the window's width."""
    for z in range(image.shape[2]):
        real, fake = (
            volume[..., z].to(torch.float64, copy=True).clamp_(hu_min, hu_max).sub_(hu_min)
            for volume in (image, recon)
        )
        yield real.contiguous(), fake.contiguous()
