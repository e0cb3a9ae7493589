"""Computes PSNR, SSIM, MAE and RMSE of a whole reconstructed CT volume, slab by slab.

Axis letters: X, Y, Z the axes of a volume; N slices of a slab; H, W the two axes inside a slice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.nn.functional import avg_pool2d

from bundle.metrics.grid import grid_score

WINDOW_SIZE = 7
"""Side of SSIM's uniform window in voxels, the default of scikit-image."""

SLAB_VOXELS = 2**18
"""Voxels held in float64 at a time, one 512 x 512 slice: some 30 MB with all intermediate results."""


class Figures(NamedTuple):
    """Tells how close a reconstruction is to its original; PSNR and SSIM depend on the HU window."""

    psnr: float
    """Peak signal-to-noise ratio in dB over all voxels, the peak being the window's width; inf if equal."""
    ssim: float
    """Structural similarity, 2D per slice, mean over slices."""
    mae_hu: float
    """Mean absolute error in HU."""
    rmse_hu: float
    """Root of the mean squared error in HU, the figure that compares across windows."""
    grid: float
    """`grid_score` of the reconstruction alone; 1 is no grid, NaN if every axis is shorter than 48 voxels."""
    n_voxels: int
    """Number of voxels that were compared."""


def reconstruction_figures(
    image: torch.Tensor,
    recon: torch.Tensor,
    hu_min: float,
    hu_max: float,
    axis: int = 2,
    device: torch.device | str | None = None,
) -> Figures:
    """Compares two volumes inside a HU window.

    Both are clipped to the window first, so that scanner padding (-2048) and metal say nothing about the
    network. Works on slabs of slices in float64: a volume of any size needs some 30 MB beside the two inputs.
    SSIM is taken after shifting the window to 0..range, as its formula expects intensities above 0; on signed
    HU it reads about 0.006 lower.
    SSIM equals `skimage.metrics.structural_similarity` with its defaults (7 x 7 uniform window, sample
    covariance, border left out). A NaN voxel makes every figure NaN.
    Paper: Wang et al. 2004, doi:10.1109/TIP.2003.819861, eq. 13 (deviation: uniform window, not Gaussian).

    Args:
        image: original, (X, Y, Z) in HU, integer or float, any device.
        recon: reconstruction, same shape and unit.
        hu_min: lower end of the window in HU.
        hu_max: upper end of the window in HU; `hu_max - hu_min` is the data range of PSNR and SSIM.
        axis: axis across which slices are taken for SSIM; 2 is axial where the axes are RAS.
        device: where the slabs are compared; None is where `image` is.

    Returns:
        The figures as plain numbers.

    Raises:
        ValueError: if the shapes differ or are not 3D, the window is empty, or a slice is smaller than 7 x 7.
    """
    _check(image, recon, hu_min, hu_max, axis)
    n_voxels, data_range = image.numel(), float(hu_max - hu_min)
    absolute = squared = similarity = 0.0
    for real, fake in _slabs(image, recon, hu_min, hu_max, axis, device or image.device):
        error = real - fake
        absolute += error.abs().sum().item()
        squared += error.square_().sum().item()
        similarity += _ssim_per_slice(real.sub_(hu_min), fake.sub_(hu_min), data_range).sum().item()
    mean_squared = squared / n_voxels
    psnr = math.inf if mean_squared == 0 else 10 * math.log10(data_range**2 / mean_squared)
    ssim = similarity / image.shape[axis]
    grid = grid_score(recon, device)
    return Figures(psnr, ssim, absolute / n_voxels, math.sqrt(mean_squared), grid, n_voxels)


def _check(image: torch.Tensor, recon: torch.Tensor, hu_min: float, hu_max: float, axis: int) -> None:
    if image.ndim != 3 or image.shape != recon.shape:
        raise ValueError(
            f"`image` and `recon` must be volumes (X, Y, Z) of one shape, got {tuple(image.shape)} and "
            f"{tuple(recon.shape)}; drop batch and channel axes first"
        )
    if not hu_min < hu_max:
        raise ValueError(f"`hu_min` must be below `hu_max`, got {hu_min} and {hu_max}; give the window in HU")
    if axis not in (0, 1, 2):
        raise ValueError(f"`axis` must be 0, 1 or 2, got {axis}; axial slices of RAS volumes lie across 2")
    sides = [size for n, size in enumerate(image.shape) if n != axis]
    if min(sides) < WINDOW_SIZE:
        raise ValueError(
            f"`image` must have slices of at least {WINDOW_SIZE} x {WINDOW_SIZE} voxels, "
            f"got {sides[0]} x {sides[1]}; SSIM is not defined on smaller ones"
        )


def _slabs(
    image: torch.Tensor,
    recon: torch.Tensor,
    hu_min: float,
    hu_max: float,
    axis: int,
    device: torch.device | str,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields pairs of clipped float64 slabs (N, H, W)."""
    n_slices = image.shape[axis]
    thickness = max(1, SLAB_VOXELS * n_slices // image.numel())
    for start in range(0, n_slices, thickness):
        count = min(thickness, n_slices - start)
        pair = (volume.detach().narrow(axis, start, count).movedim(axis, 0) for volume in (image, recon))
        real, fake = (slab.to(device, torch.float64, copy=True).clamp_(hu_min, hu_max) for slab in pair)
        yield real.contiguous(), fake.contiguous()


def _ssim_per_slice(real: torch.Tensor, fake: torch.Tensor, data_range: float) -> torch.Tensor:
    """Returns the mean SSIM of each slice, (N,); intensities run from 0 to `data_range`."""
    return similarity_map(
        local_mean(real),
        local_mean(fake),
        local_mean(real * fake),
        local_mean(real.square() + fake.square()),
        data_range,
        WINDOW_SIZE**2,
    ).mean(dim=(1, 2))


def similarity_map(
    mean_real: torch.Tensor,
    mean_fake: torch.Tensor,
    mean_product: torch.Tensor,
    mean_squares: torch.Tensor,
    data_range: float,
    window_voxels: int,
) -> torch.Tensor:
    """Computes the SSIM of every window from the windows' means.

    Args:
        mean_real: mean of the original, any shape.
        mean_fake: mean of the reconstruction.
        mean_product: mean of their product.
        mean_squares: mean of the sum of their squares.
        data_range: highest minus lowest intensity that there can be.
        window_voxels: voxels of a window, for the sample covariance.
    """
    stability_mean, stability_variance = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    to_sample = window_voxels / (window_voxels - 1)
    squared_means = mean_real.square() + mean_fake.square()
    covariance = to_sample * (mean_product - mean_real * mean_fake)
    variances = to_sample * (mean_squares - squared_means)
    luminance = (2 * mean_real * mean_fake + stability_mean) / (squared_means + stability_mean)
    structure = (2 * covariance + stability_variance) / (variances + stability_variance)
    return luminance * structure


def local_mean(slices: torch.Tensor) -> torch.Tensor:
    """Averages over every full 7 x 7 window, one axis after the other: (N, H, W) to (N, H - 6, W - 6)."""
    rows = avg_pool2d(slices, (WINDOW_SIZE, 1), stride=1)
    return avg_pool2d(rows, (1, WINDOW_SIZE), stride=1)
