"""Reads a volume of any orientation with its axes turned to right, anterior and superior."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from bundle.data.volumes.reading import read_volume


class RASVolume(NamedTuple):
    """A volume in the axes closest to right, anterior and superior; only flipped and permuted.

    Attributes:
        voxels: (X, Y, Z) int16 in HU.
        spacing_mm: edges of a voxel.
        affine: (4, 4), these voxels to RAS millimetres.
    """

    voxels: np.ndarray
    spacing_mm: tuple[float, float, float]
    affine: np.ndarray


def read_ras(path: Path) -> RASVolume:
    """Reads a volume of any format, rounded to whole HU and clipped to int16.

    Reconstructions are whole HU too, so all figures and pictures compare the same voxels.

    Raises:
        VolumeError: if it cannot be used, naming it.
    """
    volume = read_volume(path)
    orientation = io_orientation(volume.affine)
    voxels = apply_orientation(volume.voxels, orientation)
    if voxels.dtype != np.int16:
        limits = np.iinfo(np.int16)
        voxels = np.rint(voxels.clip(limits.min, limits.max)).astype(np.int16)
    affine = volume.affine @ inv_ornt_aff(orientation, volume.voxels.shape)
    x, y, z = voxel_sizes(affine).tolist()
    return RASVolume(np.ascontiguousarray(voxels), (x, y, z), affine)
