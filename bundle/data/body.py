"""Finds, coarsely, where the body is and where contrast agent is; for placing patches, not for measuring.

Thresholds are those of the textbook: air -1000 HU, soft tissue about 0, vessels with contrast 150 to 600.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

STEP = 4  # every fourth voxel along each axis is looked at
CELL = 16  # voxels along the edge of a cell of the body map
AIR_BELOW_HU = -500
CONTRAST_HU = (150, 600)
BONE_ABOVE_HU = 700
MAX_POINTS = 4096
IN_PLANE = np.zeros((3, 3, 3), bool)
IN_PLANE[:, 1, 1] = IN_PLANE[1, :, 1] = True


class BodyMap(NamedTuple):
    """Where patches are worth placing.

    Attributes:
        body: share of body in each cell of 16^3 voxels, 0 to 255, (X, Y, Z) in cells. Lungs are body; the air
            around it is not.
        contrast: (N, 3) uint16, at most 4096 voxels of 150-600 HU inside the body and away from dense bone,
            spread evenly over all of them.
    """

    body: np.ndarray
    contrast: np.ndarray


def map_body(samples: np.ndarray) -> BodyMap:
    """Maps a volume.

    Body is what the air at the sides of an axial slice does not reach, so the lungs are part of it; what is
    thinner than 3 samples (table, blanket, tubes) is not. Bone is known by voxels above 700 HU: contrast
    within two samples of them is left out, so the wall of a very dense vein goes with it, and the softest
    spongy bone stays in.

    Args:
        samples: every `STEP`-th voxel of a volume along X, Y, Z, in HU.

    Returns:
        the maps, in voxels of the volume.
    """
    air, n_regions = ndimage.label(samples < AIR_BELOW_HU, structure=IN_PLANE)
    sides = [air[0], air[-1], air[:, 0], air[:, -1]]
    is_outside = np.zeros(n_regions + 1, bool)
    is_outside[np.unique(np.concatenate([side.ravel() for side in sides]))] = True
    is_outside[0] = False
    body = ndimage.binary_opening(~is_outside[air], IN_PLANE) & ~is_outside[air]
    low, high = CONTRAST_HU
    near_bone = ndimage.binary_dilation(samples > BONE_ABOVE_HU, iterations=2)
    found = np.argwhere((samples >= low) & (samples <= high) & body & ~near_bone)
    if len(found) > MAX_POINTS:
        found = found[np.linspace(0, len(found) - 1, MAX_POINTS).astype(int)]
    return BodyMap(_share_of_cells(body), (found * STEP).astype(np.uint16))


def body_share(body: np.ndarray, start: np.ndarray, size: np.ndarray) -> float:
    """Share of body in a box of voxels: cells count by what the box covers of them."""
    weights = []
    for first, length, n_cells in zip(start, size, body.shape, strict=True):
        edges = np.arange(first // CELL, min(-(-(first + length) // CELL), n_cells)) * CELL
        weights.append(np.minimum(edges + CELL, first + length) - np.maximum(edges, first))
    first = start // CELL
    cells = body[tuple(slice(low, low + len(part)) for low, part in zip(first, weights, strict=True))]
    return float(np.einsum("xyz,x,y,z->", cells / 255, *weights) / np.prod(size))


def _share_of_cells(body: np.ndarray) -> np.ndarray:
    """Mean over blocks of CELL / STEP samples; blocks at the end are smaller."""
    per_cell = CELL // STEP
    padded = np.pad(body, [(0, -length % per_cell) for length in body.shape], mode="edge")
    n_x, n_y, n_z = (length // per_cell for length in padded.shape)
    blocks = padded.reshape(n_x, per_cell, n_y, per_cell, n_z, per_cell)
    return np.rint(blocks.mean(axis=(1, 3, 5)) * 255).astype(np.uint8)
