"""Chooses slabs, or the tiles that waste the least on halos, which fit into free memory."""

import itertools
import math
from collections.abc import Sequence

import torch

from bundle.data.volumes.formats import free_memory_bytes

# On a CPU larger ones are no faster, and other programs need memory too.
CPU_BUDGET_BYTES = 3 * 2**29
# Larger ones are no faster on a GPU either, and few of its kernels are tested with 2^31 elements or more.
GPU_BUDGET_BYTES = 2**34
FREE_SHARE = 0.6
MAX_CUTS = 24
# What all layers keep between two slabs, in slices of a slab: 5 (`lite`) to 15 (`default`).
KEPT_SLICES = 16
# Tiles are larger, since a larger tile wastes less on its halo. On a CPU thin slabs need less memory that is
# new to the process; still thinner ones are slower, since slices are kept more often.
CPU_SLAB_VOXELS = 2**21
GPU_SLAB_VOXELS = 2**24
NO_MEMORY = (
    "can't allocate memory",
    "out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "unable to find an engine to execute this computation",  # cuDNN, when no work space is left
)


def free_bytes(device: torch.device) -> int:
    """Returns the memory that may be taken on `device` now."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    free = free_memory_bytes()
    return CPU_BUDGET_BYTES if free is None else free


def budget_bytes(device: torch.device) -> int:
    """Returns the memory that the activations of one slab or tile may take."""
    largest = GPU_BUDGET_BYTES if device.type == "cuda" else CPU_BUDGET_BYTES
    return min(int(free_bytes(device) * FREE_SHARE), largest)


def choose_slab_slices(shape: Sequence[int], stride: int, max_voxels: int, device: torch.device) -> int:
    """Returns how many slices along the first axis a slab may have.

    Args:
        shape: of the volume in voxels.
        stride: slabs are multiples of it.
        max_voxels: that fit into memory: a slab, and the slices that layers keep between two slabs.
        device: of the network.

    Returns:
        0 if not even two strides fit: then the volume must be cut along the other axes too.
    """
    area = math.prod(shape[1:])
    fitting = max_voxels // area - KEPT_SLICES
    if fitting < 2 * stride:
        return 0
    enough = GPU_SLAB_VOXELS if device.type == "cuda" else CPU_SLAB_VOXELS
    wanted = max(2 * stride, min(fitting, enough // area))
    return min(wanted // stride * stride, math.ceil(shape[0] / stride) * stride)


def choose_tile_size(shape: Sequence[int], halo: int, stride: int, max_voxels: int) -> tuple[int, ...]:
    """Returns the core for which the network runs on the fewest voxels, halos included, to cover `shape`.

    Args:
        shape: of the volume in voxels.
        halo: in voxels.
        stride: cores are multiples of it.
        max_voxels: largest window (core and halo) that fits into memory.

    Returns:
        Core per axis in voxels; the smallest possible, 2 strides, if nothing fits.
    """
    axes = []
    for size in shape:
        options = {}
        for cuts in range(1, MAX_CUTS + 1):
            core = max(2 * stride, math.ceil(math.ceil(size / cuts) / stride) * stride)
            windows = [
                min(size, start + core + halo) - max(0, start - halo) for start in range(0, size, core)
            ]
            options[core] = (sum(windows), max(windows))
        axes.append(options)
    best, least = None, math.inf
    for cores in itertools.product(*axes):
        run, largest = 1, 1
        for options, core in zip(axes, cores, strict=True):
            run, largest = run * options[core][0], largest * options[core][1]
        if largest <= max_voxels and run < least:
            best, least = cores, run
    return (2 * stride,) * 3 if best is None else best


def halved(tile_size: Sequence[int], shape: Sequence[int], stride: int) -> tuple[int, ...] | None:
    """Halves the longest side of tiles; None if they are as small as they can be."""
    sides = [
        min(size, math.ceil(extent / stride) * stride) for size, extent in zip(tile_size, shape, strict=True)
    ]
    longest = sides.index(max(sides))
    half = math.ceil(sides[longest] / 2 / stride) * stride
    if half < 2 * stride or half == sides[longest]:
        return None
    return tuple(half if axis == longest else side for axis, side in enumerate(sides))


def is_out_of_memory(error: BaseException) -> bool:
    """Tells whether torch or a library below it ran out of memory, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(told.lower() in str(error).lower() for told in NO_MEMORY)
