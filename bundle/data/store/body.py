"""Finds roughly where the body and contrast agent are; good for placing patches, not for measuring."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from bundle.data.store.vessels import AIR_BELOW_HU, IN_PLANE, Vessels, find_vessels

STEP = 4  # every fourth voxel along each axis is used
CELL = 16  # voxels along the edge of a cell of the body map
NO_LUNG_BELOW_HU = -950
MIN_OUTSIDE_SHARE = 0.02
MAX_POINTS = 4096
MAX_REPEATS = 8


class BodyMap(NamedTuple):
    """Tells where patches are worth placing.

    Attributes:
        body: share of body in each cell of 16^3 voxels, 0 to 255, (X, Y, Z) in cells. Lungs are body; the air
            around it is not.
        contrast: (N, 3) uint16, at most 4096 voxels of 150 to 1000 HU in heart chambers and filled vessels,
            spread evenly over them. Emboli lie in vessels inside the lungs, which have few samples; these are
            repeated up to eight times, until they are a quarter. N is 0 without contrast agent.
    """

    body: np.ndarray
    contrast: np.ndarray


class Outside(NamedTuple):
    """Counts voxels that an HU window clips; in the body, every `STEP`-th along each axis is counted.

    Attributes:
        n_below: voxels below the window.
        n_above: voxels above it.
        n_body_below: samples of the body below the window.
        n_body_above: samples of the body above it.
        n_body: all samples of the body.
    """

    n_below: int
    n_above: int
    n_body_below: int
    n_body_above: int
    n_body: int

    def told(self, n_voxels: int, hu_min: float, hu_max: float) -> str:
        """Says how many of `n_voxels` are outside, and how many of those in the body, which matter more."""
        below, above = (100 * n / n_voxels for n in (self.n_below, self.n_above))
        in_body = [100 * n / max(self.n_body, 1) for n in (self.n_body_below, self.n_body_above)]
        return (
            f"{self.n_below} of {n_voxels} voxels ({below:.2f} %) below {hu_min:g} HU and {self.n_above} "
            f"({above:.2f} %) above {hu_max:g} HU"
        ) + (f", of the body {in_body[0]:.2f} % and {in_body[1]:.2f} %" if self.n_body else "")


def count_in_body(samples: np.ndarray, hu_min: float, hu_max: float) -> tuple[int, int, int]:
    """Counts samples of the body: below the window, above it, and all; see `map_body`."""
    values = samples[find_body(samples)]
    return int(np.count_nonzero(values < hu_min)), int(np.count_nonzero(values > hu_max)), values.size


def map_body(samples: np.ndarray, spacing_mm: Sequence[float]) -> BodyMap:
    """Maps body and contrast agent of a volume.

    The body is everything that the air at the sides of an axial slice does not reach, so the lungs are part
    of it. Parts thinner than 3 samples (table, blanket, tubes) are not. For contrast see
    `bundle.data.store.vessels`.

    Args:
        samples: every `STEP`-th voxel of a volume along X, Y, Z, in HU, RAS axes.
        spacing_mm: edges of a voxel along X, Y, Z.

    Returns:
        the maps, in voxels of the volume.
    """
    body = find_body(samples)
    vessels = find_vessels(samples, body, [STEP * edge for edge in spacing_mm])
    return BodyMap(_share_of_cells(body), (_points(vessels) * STEP).astype(np.uint16))


def find_body(samples: np.ndarray) -> np.ndarray:
    """Finds the body, see `map_body`.

    A volume without empty air around it is a crop of a body, so there the lungs may reach the sides.
    """
    air, n_regions = ndimage.label(samples < AIR_BELOW_HU, structure=IN_PLANE)
    sides = [air[0], air[-1], air[:, 0], air[:, -1]]
    is_outside = np.zeros(n_regions + 1, bool)
    is_outside[np.unique(np.concatenate([side.ravel() for side in sides]))] = True
    is_outside[0] = False
    n_empty = np.bincount(air[samples < NO_LUNG_BELOW_HU], minlength=n_regions + 1)
    n_all = np.bincount(air.ravel(), minlength=n_regions + 1)
    is_empty = is_outside & (2 * n_empty > n_all)
    if n_all[is_empty].sum() < MIN_OUTSIDE_SHARE * air.size:
        is_outside = is_empty
    # A morphological opening; parts that a face of the volume cuts count as thick.
    core = ndimage.binary_erosion(~is_outside[air], IN_PLANE, border_value=1)
    body: np.ndarray = ndimage.binary_dilation(core, IN_PLANE) & ~is_outside[air]
    return body


def body_share(body: np.ndarray, start: np.ndarray, size: np.ndarray) -> float:
    """Returns the share of body in a box of voxels; each cell counts by the part that the box covers."""
    weights = []
    for first, length, n_cells in zip(start, size, body.shape, strict=True):
        edges = np.arange(first // CELL, min(-(-(first + length) // CELL), n_cells)) * CELL
        weights.append(np.minimum(edges + CELL, first + length) - np.maximum(edges, first))
    first = start // CELL
    cells = body[tuple(slice(low, low + len(part)) for low, part in zip(first, weights, strict=True))]
    return float(np.einsum("xyz,x,y,z->", cells / 255, *weights) / np.prod(size))


def _share_of_cells(body: np.ndarray) -> np.ndarray:
    """Averages over blocks of CELL / STEP samples; blocks at the end are smaller."""
    per_cell = CELL // STEP
    padded = np.pad(body, [(0, -length % per_cell) for length in body.shape], mode="edge")
    n_x, n_y, n_z = (length // per_cell for length in padded.shape)
    blocks = padded.reshape(n_x, per_cell, n_y, per_cell, n_z, per_cell)
    return np.rint(blocks.mean(axis=(1, 3, 5)) * 255).astype(np.uint8)


def _points(vessels: Vessels) -> np.ndarray:
    """Returns (N, 3) samples, spread evenly over the volume."""
    in_lung = np.argwhere(vessels.is_in_lung)
    other = np.argwhere(vessels.is_filled & ~vessels.is_in_lung)
    n_in_lung = min(MAX_REPEATS * len(in_lung), max(len(other) // 3, len(in_lung)), MAX_POINTS // 4)
    return np.concatenate([_pick(in_lung, n_in_lung), _pick(other, min(len(other), MAX_POINTS - n_in_lung))])


def _pick(points: np.ndarray, n_points: int) -> np.ndarray:
    return points[np.linspace(0, len(points) - 1, n_points).round().astype(int)]
