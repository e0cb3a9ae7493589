"""Measures whether the borders of tiles show in a volume that was reconstructed tile by tile."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from bundle.run.rules import STRIDE


def seam_score(recon: torch.Tensor, tile_size: int | Sequence[int], stride: int = STRIDE) -> float:
    """Compares the jumps across the planes between tiles with the jumps across other planes nearby.

    1 means that seams cannot be told from anatomy, 2 that intensity jumps twice as far where two tiles meet.
    The other planes lie one and two strides to either side of a tile plane. A strided decoder leaves a
    texture that repeats with its stride, so only planes of the same phase can be compared.

    Args:
        recon: volume (X, Y, Z), any unit, integer or float, any device.
        tile_size: side of a tile's core in voxels, one number or one per axis; tiles start at voxel 0.
        stride: voxels per index of the network's code map.

    Returns:
        The ratio, pooled over all tile planes of all axes; 1.0 if the volume lies in one tile; inf if every
        jump is at a seam.

    Raises:
        ValueError: if `recon` is not 3D or a tile is smaller than two strides.
    """
    if recon.ndim != 3:
        raise ValueError(
            f"`recon` must be a volume (X, Y, Z), got {tuple(recon.shape)}; drop the other axes first"
        )
    sides = [tile_size] * 3 if isinstance(tile_size, int) else list(tile_size)
    if len(sides) != 3 or min(sides) < 2 * stride:
        raise ValueError(
            f"`tile_size` must be one or three numbers of at least {2 * stride} voxels, got {tile_size}; "
            "smaller tiles have no plane of the same phase inside"
        )
    across = nearby = 0.0
    for axis, side in enumerate(sides):
        n_planes = recon.shape[axis]
        for plane in range(side, n_planes, side):
            offsets = [n * stride for n in (-2, -1, 1, 2)]
            others = [p for p in (plane + n for n in offsets) if 0 < p < n_planes and p % side]
            if others:
                across += _jump(recon, axis, plane)
                nearby += sum(_jump(recon, axis, other) for other in others) / len(others)
    if nearby == 0:
        return 1.0 if across == 0 else math.inf
    return across / nearby


def _jump(recon: torch.Tensor, axis: int, plane: int) -> float:
    """Returns the sum of absolute differences between voxels `plane - 1` and `plane` along `axis`."""
    before, after = (recon.select(axis, n).double() for n in (plane - 1, plane))
    return (after - before).abs().sum().item()
