"""Measures whether the borders of tiles show in a volume that was reconstructed tile by tile."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from bundle.run.rules import STRIDE

MARGIN = 20
"""Voxels from the end of the volume: networks draw another texture there, with tiles and without."""
BLOCK = 8
"""Edge of the squares of a plane in which jumps are averaged, in voxels."""
FLAT_HU = 1.0
"""Squares whose mean jump in the original is smaller, as in padding, tell nothing."""
MIN_OTHERS = 6
"""Number of other sets of planes that are needed to know how far they differ without any seam."""
OUTLIERS = 0.1
"""Share of squares left out at either end."""
_NEAR = (-2, -1, 1, 2)
_LEAST_NEAR = 3


def seam_score(
    original: Tensor,
    recon: Tensor,
    tile_size: int | Sequence[int],
    hu_min: float,
    hu_max: float,
    stride: int = STRIDE,
) -> float:
    """Compares the planes between tiles with all other sets of planes that lie as far from each other.

    The jump across a plane is taken in squares of 8 x 8 voxels, relative to the original's jump and to that
    of planes one and two strides to either side. Its geometric mean over the planes between tiles, without
    the highest and the lowest tenth, is the jump there. The same mean over the same planes, moved by every
    multiple of the stride up to half a tile, says what anatomy and texture do without any seam. A strided
    decoder leaves a texture that repeats with its stride, so only planes of the same phase are compared.

    On a real CT exact tiles scored 1, a step of 1 HU from tile to tile 1.02, tiles without halo 2.4
    (docs/evaluation.md).

    Args:
        original: volume (X, Y, Z) in HU, integer or float.
        recon: of the same shape.
        tile_size: side of a tile's core in voxels, one number or one per axis; tiles start at voxel 0.
        hu_min: both volumes are clipped to this window.
        hu_max: its upper end.
        stride: voxels per index of the network's code map.

    Returns:
        1.0 if the jump between tiles lies inside the range of the other sets, or if the volume lies in one
        tile. Above that range the ratio to its upper end, more than 1; below, as where seams were blended,
        the ratio to its lower end. NaN if no plane between tiles lies 20 voxels inside the volume, if tiles
        are smaller than 8 strides, or if the original is flat.

    Raises:
        ValueError: if a volume is not 3D, shapes differ, or `tile_size` has another length.
    """
    if original.ndim != 3 or original.shape != recon.shape:
        raise ValueError(
            f"`original` and `recon` must be volumes (X, Y, Z) of one shape, got {tuple(original.shape)} and "
            f"{tuple(recon.shape)}; drop other axes first"
        )
    sides = [tile_size] * 3 if isinstance(tile_size, int) else list(tile_size)
    if len(sides) != 3 or min(sides) < 1:
        raise ValueError(f"`tile_size` must be one or three numbers of voxels, got {tile_size}; give voxels")
    if all(side >= size for side, size in zip(sides, recon.shape, strict=True)):
        return 1.0
    jumps: dict[int, list[Tensor]] = {}
    for axis, side in enumerate(sides):
        excess = _excess(original, recon, axis, side, (hu_min, hu_max), stride)
        reach = (side - 1) // 2 // stride * stride
        for plane in range(side, recon.shape[axis], side):
            for moved in range(-reach, reach + 1, stride):
                jumps.setdefault(moved, []).append(excess.get(plane + moved, torch.empty(0)))
    means = {moved: _typical(torch.cat(found)) for moved, found in jumps.items()}
    others = [mean for moved, mean in means.items() if moved != 0 and not math.isnan(mean)]
    if math.isnan(means[0]) or len(others) < MIN_OTHERS:
        return math.nan
    return max(means[0] / max(others), 1.0) if means[0] > min(others) else means[0] / min(others)


def _typical(excess: Tensor) -> float:
    """Returns the geometric mean of the middle 80 %; a few squares at organ borders would outweigh all."""
    n = len(excess)
    middle = excess.sort().values[round(OUTLIERS * n) : n - round(OUTLIERS * n)]
    return float(middle.mean().exp())


def _excess(
    original: Tensor, recon: Tensor, axis: int, side: int, window: tuple[float, float], stride: int
) -> dict[int, Tensor]:
    """Returns by plane the logarithm of the jump in each square, less that of planes nearby, (squares,).

    Planes of one phase only: multiples of the stride from the first plane between tiles.
    """
    size = recon.shape[axis]
    planes = range(side % stride or stride, size if side < size else 0, stride)
    logs, bumpy = {}, {}
    for plane in planes:
        old, new = (_jump(volume, axis, plane, window) for volume in (original, recon))
        logs[plane], bumpy[plane] = torch.log((new + 1) / (old + 1)), old > FLAT_HU
    found = {}
    for plane in planes:
        near = [logs[other] for other in _beside(plane, stride) if other in logs and other % side]
        if MARGIN <= plane <= size - MARGIN and len(near) >= _LEAST_NEAR:
            found[plane] = (logs[plane] - torch.stack(near).mean(dim=0))[bumpy[plane]]
    return found


def _beside(plane: int, stride: int) -> Iterator[int]:
    return (plane + n * stride for n in _NEAR)


def _jump(volume: Tensor, axis: int, plane: int, window: tuple[float, float]) -> Tensor:
    """Returns the mean absolute difference of voxels `plane - 1` and `plane`, in squares of 8 x 8 voxels."""
    before, after = (volume.select(axis, n).float().clamp(*window) for n in (plane - 1, plane))
    return F.avg_pool2d((after - before).abs()[None, None], BLOCK, ceil_mode=True)[0, 0]
