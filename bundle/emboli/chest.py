"""Finds body, lungs, filled vessels and bone at full resolution, always in the original volume.

Axis letters: X, Y, Z of a volume in RAS axes. The work is done in slabs along z. Besides the volume it needs
one byte of memory per voxel for the tissues, and two per voxel of the box around the vessels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from bundle.data.store.body import STEP, find_body
from bundle.data.store.vessels import AIR_BELOW_HU, CONTRAST_HU, IN_PLANE, SOFT_TISSUE_HU, find_vessels
from bundle.emboli.spine import Spine, find_spine

SLAB_SLICES = 32
SMOOTHING_MM = 0.7
"""Width of the Gaussian in the axial plane that smooths noise before the lumen is cut out."""
WALL_STEP_MM = 0.05
MAX_WALL_MM = 6.0
BONE_ABOVE_HU = 200
BONE_OFF_VESSEL_MM = 6
MIN_LUNG_SHARE = 0.03
MIN_LARGE_LUNG_SHARE = 0.1
MIN_CERTAIN_SHARE = 0.25
DENSEST = 1.5
"""Voxels that are this many times denser than blood are bone beside a vessel, or unmixed contrast agent."""
TISSUE_HU = 50
"""HU around a vessel of the mediastinum; the wall of a lumen is halfway between these and the blood."""


class Tissue(IntEnum):
    """Values of `Chest.tissue`; all other voxels, such as fat, are `OTHER`."""

    OUTSIDE = 0
    OTHER = 1
    LUNG = 2
    SOFT = 3
    VESSEL = 4
    BONE = 5


class Lumen(NamedTuple):
    """The filled vessels of a volume, inside the box that holds them all.

    Attributes:
        origin: first voxel of the box along X, Y, Z.
        wall: (x, y, z) uint8 of the box: distance to the wall in steps of 0.05 mm, at most 6 mm; 0 outside of
            the lumen, at least 1 inside.
        is_certain: (x, y, z) bool of the box: the coarse search found contrast agent within half a sample.
        is_in_lung: (x, y, z) bool of the coarse samples of the whole volume: vessels with lung around them.
        blood_hu: median HU of the filled samples.
    """

    origin: tuple[int, int, int]
    wall: np.ndarray
    is_certain: np.ndarray
    is_in_lung: np.ndarray
    blood_hu: float

    @property
    def box(self) -> tuple[slice, slice, slice]:
        """Returns the slices of the box in the volume."""
        x, y, z = (slice(o, o + n) for o, n in zip(self.origin, self.wall.shape, strict=True))
        return x, y, z

    def lie_in_lung(self, voxels: np.ndarray) -> np.ndarray:
        """Tells which of (N, 3) voxels of the volume are in vessels that run inside a lung."""
        x, y, z = (_nearest(voxels[:, axis], n) for axis, n in enumerate(self.is_in_lung.shape))
        found: np.ndarray = self.is_in_lung[x, y, z]
        return found


class Chest(NamedTuple):
    """Tissues and vessels of an original.

    Attributes:
        tissue: (X, Y, Z) uint8, values of `Tissue`.
        lumen: filled vessels; None in a volume without contrast agent.
    """

    tissue: np.ndarray
    lumen: Lumen | None


def find_chest(voxels: np.ndarray, spacing_mm: Sequence[float]) -> Chest:
    """Maps the tissues of an original.

    Lung is connected air inside the body. Soft tissue is 0 to 100 HU. Vessel is the lumen that contrast agent
    fills, without the marrow of the spine (see `find_spine`). Bone is above 200 HU and further than 6 mm from
    what the coarse search takes for a filled vessel.

    Args:
        voxels: (X, Y, Z) int16 in HU, RAS axes.
        spacing_mm: edges of a voxel.
    """
    samples = np.ascontiguousarray(voxels[::STEP, ::STEP, ::STEP])
    sample_mm = [STEP * edge for edge in spacing_mm]
    body = find_body(samples)
    vessels = find_vessels(samples, body, sample_mm)
    lungs = _find_lungs(samples, body)
    spine = None
    if vessels.is_filled.any():
        spine = find_spine(voxels, spacing_mm, lungs, float(np.median(samples[vessels.is_filled])))
    lung = ndimage.binary_dilation(lungs, iterations=1) & body
    reach = [max(round(BONE_OFF_VESSEL_MM / edge), 1) for edge in sample_mm]
    near = ndimage.maximum_filter(vessels.is_filled, size=[2 * n + 1 for n in reach])
    lumen = _find_lumen(voxels, spacing_mm, samples, vessels.is_filled, vessels.is_in_lung, spine)
    tissue = np.zeros(voxels.shape, np.uint8)
    for z in _slabs(voxels.shape[2]):
        hu = voxels[..., z]
        in_body, in_lung, near_vessel = (_upsampled(mask, voxels.shape, z) for mask in (body, lung, near))
        label = in_body.astype(np.uint8)
        label[in_lung & (hu < AIR_BELOW_HU)] = Tissue.LUNG
        label[in_body & (hu >= SOFT_TISSUE_HU[0]) & (hu <= SOFT_TISSUE_HU[1])] = Tissue.SOFT
        label[in_body & ~near_vessel & (hu >= BONE_ABOVE_HU)] = Tissue.BONE
        tissue[..., z] = label
    if lumen is not None:
        tissue[lumen.box][lumen.wall > 0] = Tissue.VESSEL
    return Chest(tissue, lumen)


def _find_lungs(samples: np.ndarray, body: np.ndarray) -> np.ndarray:
    """Finds air inside the body, in parts as large as a lung."""
    parts, n_parts = ndimage.label(body & (samples < AIR_BELOW_HU))
    sizes = np.bincount(parts.ravel(), minlength=n_parts + 1)
    sizes[0] = 0
    is_lung = sizes >= MIN_LARGE_LUNG_SHARE * sizes.max()
    is_lung &= sizes > MIN_LUNG_SHARE * np.count_nonzero(body)
    is_lung[0] = False
    return is_lung[parts]


def _find_lumen(
    voxels: np.ndarray,
    spacing_mm: Sequence[float],
    samples: np.ndarray,
    is_filled: np.ndarray,
    is_in_lung: np.ndarray,
    spine: Spine | None,
) -> Lumen | None:
    """Cuts the lumen out at full resolution, around what the coarse search found."""
    if not is_filled.any():
        return None
    blood_hu = float(np.median(samples[is_filled]))
    near = ndimage.binary_dilation(is_filled, IN_PLANE) | ndimage.binary_dilation(is_filled)
    origin, size = [], []
    for axis, length in enumerate(voxels.shape):
        found = np.flatnonzero(near.any(axis=tuple(other for other in range(3) if other != axis)))
        first, last = max(STEP * int(found[0]) - STEP, 0), min(STEP * (int(found[-1]) + 1), length)
        origin.append(first)
        size.append(last - first)
    wall, is_certain = np.zeros(size, np.uint8), np.zeros(size, bool)
    box = tuple(slice(o, o + n) for o, n in zip(origin, size, strict=True))
    margin = int(np.ceil(MAX_WALL_MM / spacing_mm[2])) + 1
    for z in _slabs(size[2]):
        wide = slice(max(z.start - margin, 0), min(z.stop + margin, size[2]))
        whole = slice(origin[2] + wide.start, origin[2] + wide.stop)
        inside = _cut_lumen(voxels[box[0], box[1], whole], spacing_mm, blood_hu)
        inside &= _upsampled(near, voxels.shape, whole)[box[0], box[1]]
        certain = _upsampled(is_filled, voxels.shape, whole)[box[0], box[1]]
        inside = _vessel_parts(inside, certain)
        if spine is not None:
            inside = _without_spine(inside, spine.zone((*box[:2], whole)))
        kept = slice(z.start - wide.start, z.stop - wide.start)
        wall[..., z] = _steps_to_wall(inside, spacing_mm)[..., kept]
        is_certain[..., z] = certain[..., kept]
    if not wall.any():
        return None
    return Lumen((origin[0], origin[1], origin[2]), wall, is_certain, is_in_lung, blood_hu)


def _cut_lumen(hu: np.ndarray, spacing_mm: Sequence[float], blood_hu: float) -> np.ndarray:
    sigma = [SMOOTHING_MM / edge for edge in spacing_mm[:2]]
    limited = hu.clip(-1000, CONTRAST_HU[1] + 500).astype(np.float32)
    smooth = ndimage.gaussian_filter(limited, (*sigma, 0), mode="nearest", truncate=3)
    half, quarter = (TISSUE_HU + share * (blood_hu - TISSUE_HU) for share in (0.5, 0.25))
    # The wall between two vessels is bright after smoothing, but not in the volume itself.
    return (smooth >= half) & (smooth <= min(CONTRAST_HU[1], DENSEST * blood_hu)) & (hu >= quarter)


def _vessel_parts(inside: np.ndarray, certain: np.ndarray) -> np.ndarray:
    """Keeps the bright parts of axial slices that are vessel; drops, say, a vertebra beside the aorta."""
    parts, n_parts = ndimage.label(inside, structure=IN_PLANE)
    sizes = np.bincount(parts.ravel(), minlength=n_parts + 1)
    n_certain = np.bincount(parts[certain], minlength=n_parts + 1)
    is_vessel = MIN_CERTAIN_SHARE * sizes <= n_certain
    is_vessel[0] = False
    return is_vessel[parts]


def _without_spine(inside: np.ndarray, zone: np.ndarray) -> np.ndarray:
    """Drops parts of axial slices that lie mostly where spine and ribs are."""
    parts, n_parts = ndimage.label(inside, structure=IN_PLANE)
    sizes = np.bincount(parts.ravel(), minlength=n_parts + 1)
    is_vessel = 2 * np.bincount(parts[zone], minlength=n_parts + 1) < sizes
    is_vessel[0] = False
    return is_vessel[parts]


def _steps_to_wall(inside: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Returns the distance to the nearest voxel outside, less half a voxel, in uint8 steps of 0.05 mm."""
    if not inside.any():
        return np.zeros(inside.shape, np.uint8)
    if inside.all():
        return np.full(inside.shape, round(MAX_WALL_MM / WALL_STEP_MM), np.uint8)
    distance = ndimage.distance_transform_edt(inside, sampling=spacing_mm) - min(spacing_mm[:2]) / 2
    steps = np.rint(distance.clip(WALL_STEP_MM, MAX_WALL_MM) / WALL_STEP_MM).astype(np.uint8)
    return np.where(inside, steps, np.uint8(0))


def _slabs(n_slices: int) -> Iterator[slice]:
    for start in range(0, n_slices, SLAB_SLICES):
        yield slice(start, min(start + SLAB_SLICES, n_slices))


def _upsampled(mask: np.ndarray, shape: Sequence[int], z: slice) -> np.ndarray:
    """Returns slices `z` of a coarse mask at full resolution: the nearest sample of every voxel."""
    ranges = (np.arange(shape[0]), np.arange(shape[1]), np.arange(z.start, z.stop))
    index = [_nearest(voxel, length) for voxel, length in zip(ranges, mask.shape, strict=True)]
    return mask[np.ix_(*index)]


def _nearest(voxel: np.ndarray, n_samples: int) -> np.ndarray:
    return np.minimum((voxel + STEP // 2) // STEP, n_samples - 1)
