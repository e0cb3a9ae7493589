"""Measures errors in HU, tissue by tissue."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class RegionErrors(NamedTuple):
    """Holds the errors of a reconstruction in one region; NaN in a region without voxels."""

    mae_hu: float
    """Mean absolute error in HU."""
    bias_hu: float
    """Mean of reconstruction less original in HU; above 0 where it is too bright."""
    rmse_hu: float
    """Root of the mean squared error in HU."""
    n_voxels: int
    """Voxels of the region."""


def region_errors(
    image: np.ndarray,
    recon: np.ndarray,
    tissue: np.ndarray,
    regions: Mapping[str, Sequence[int]],
    hu_min: float,
    hu_max: float,
) -> dict[str, RegionErrors]:
    """Compares two volumes inside a HU window, region by region, slice by slice.

    Args:
        image: original, (X, Y, Z) in HU.
        recon: reconstruction of the same shape.
        tissue: (X, Y, Z) small integers that name the tissue of each voxel; made from the original only.
        regions: which of these integers make up each named region.
        hu_min: lower end of the window; both volumes are clipped to it.
        hu_max: upper end.

    Returns:
        The errors by the name of the region.
    """
    n_labels = int(max(max(labels) for labels in regions.values())) + 1
    sums = np.zeros((4, n_labels))
    for z in range(image.shape[2]):
        real, fake = (volume[..., z].astype(np.float64).clip(hu_min, hu_max) for volume in (image, recon))
        error, label = (fake - real).ravel(), tissue[..., z].ravel()
        for row, values in enumerate((None, error, np.abs(error), np.square(error))):
            sums[row] += np.bincount(label, values, n_labels)[:n_labels]
    return {name: _errors(sums[:, sorted(labels)].sum(axis=1)) for name, labels in regions.items()}


def _errors(sums: np.ndarray) -> RegionErrors:
    count, signed, absolute, squared = (float(total) for total in sums)
    if count == 0:
        return RegionErrors(math.nan, math.nan, math.nan, 0)
    return RegionErrors(absolute / count, signed / count, math.sqrt(squared / count), int(count))
