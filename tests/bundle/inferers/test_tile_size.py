import itertools
import math

import pytest
import torch

from bundle.inferers.tile_size import (
    KEPT_SLICES,
    choose_slab_slices,
    choose_tile_size,
    halved,
    is_out_of_memory,
)


def voxels_run(shape, core, halo):
    """Total and largest window of a tiling, by its definition."""
    totals, largest = [], []
    for size, side in zip(shape, core, strict=True):
        windows = [min(size, s + side + halo) - max(0, s - halo) for s in range(0, size, side)]
        totals.append(sum(windows))
        largest.append(max(windows))
    return math.prod(totals), math.prod(largest)


@pytest.mark.parametrize("max_voxels", [10**9, 20 * 10**6, 2 * 10**6])
def test_the_choice_fits_and_no_cube_that_fits_runs_fewer_voxels(max_voxels):
    shape = (512, 512, 604)
    core = choose_tile_size(shape, 20, 4, max_voxels)
    run, largest = voxels_run(shape, core, 20)
    assert largest <= max_voxels
    assert all(side % 4 == 0 for side in core)
    for cube in range(32, 512, 32):
        cube_run, cube_largest = voxels_run(shape, (cube,) * 3, 20)
        assert cube_largest > max_voxels or run <= cube_run


def test_without_room_for_any_tile_it_is_the_smallest():
    assert choose_tile_size((512, 512, 604), 44, 4, 10) == (8, 8, 8)


@pytest.mark.parametrize(("slices", "expected"), [(7, 0), (8, 8), (13, 12), (19, 16), (1000, 100)])
def test_slabs_are_as_thick_as_memory_and_stride_allow(slices, expected):
    max_voxels = (slices + KEPT_SLICES) * 40 * 50
    assert choose_slab_slices((98, 40, 50), 4, max_voxels, torch.device("cpu")) == expected


@pytest.mark.parametrize(
    ("device", "area", "expected"),
    [("cuda", (512, 604), 52), ("cuda", (4096, 4096), 8), ("cpu", (128, 128), 128), ("cpu", (512, 604), 8)],
)
def test_slabs_are_no_thicker_than_they_need_be(device, area, expected):
    assert choose_slab_slices((512, *area), 4, 10**12, torch.device(device)) == expected


def test_halving_goes_down_to_the_smallest_tile_and_ends():
    tile, steps = (64, 64, 32), []
    while tile is not None:
        steps.append(tile)
        tile = halved(tile, (512, 512, 40), 4)
    assert steps[1] == (32, 64, 32)
    assert steps[-1] == (8, 8, 8)
    assert all(math.prod(a) > math.prod(b) for a, b in itertools.pairwise(steps))


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("Unable to find an engine to execute this computation"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_an_allocation_that_failed_is_known_by_what_torch_cudnn_and_cublas_say(error, is_memory):
    assert is_out_of_memory(error) is is_memory
