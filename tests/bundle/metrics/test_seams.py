"""The seam score tells tiles that were cut from tiles that were not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from bundle.metrics.seams import seam_score

WINDOW_HU = -1000.0, 1000.0
SHAPE = 112, 100, 92


def _volume(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Organs with noise, and what a network makes of them: smoother, with a texture of its stride."""
    generator = torch.Generator().manual_seed(seed)
    rough = torch.randn(SHAPE, generator=generator).numpy()
    field = torch.from_numpy(gaussian_filter(rough, 14) / gaussian_filter(rough, 14).std())
    organs = torch.tensor([-850.0, 40.0, 300.0])[torch.bucketize(field, torch.tensor([-0.7, 0.9]))]
    original = organs + 20 * torch.randn(SHAPE, generator=generator)
    texture = (torch.arange(SHAPE[0]) % 4 * 1.0).view(-1, 1, 1)
    recon = torch.nn.functional.avg_pool3d(original[None, None], 3, 1, 1)[0, 0] + texture
    return original.round().to(torch.int16), recon.round().to(torch.int16)


def _with_step(volume: torch.Tensor, side: int, step_hu: int) -> torch.Tensor:
    """Every second tile in each direction is shifted by `step_hu`."""
    parity = sum(torch.meshgrid(*(torch.arange(n) // side for n in volume.shape), indexing="ij")) % 2
    return (volume + step_hu * parity).to(volume.dtype)


@pytest.fixture(scope="module", params=range(4))
def pair(request):
    return _volume(request.param)


def score(original, recon, tile_size):
    return seam_score(original, recon, tile_size, *WINDOW_HU)


def test_exact_tiles_score_one_whatever_the_anatomy_and_the_texture(pair):
    for side in (32, 36, 48):
        assert score(*pair, side) < 1.02  # a hundredth more than the bar: so small a volume has few squares


def test_a_step_of_3_hu_between_tiles_fails_clearly(pair):
    original, recon = pair
    assert score(original, _with_step(recon, 32, 3), 32) > 1.04
    assert score(original, _with_step(original, 32, 10), 32) > 1.01  # among noise of 20 HU


def test_the_score_grows_with_the_step(pair):
    original, recon = pair
    scores = [score(original, _with_step(recon, 32, step), 32) for step in (0, 3, 10, 40)]
    assert scores == sorted(scores) and scores[-1] > 1.3


def test_a_seam_is_found_only_with_the_tile_size_that_made_it(pair):
    original, recon = pair
    cut = _with_step(recon, 32, 20)
    assert score(original, cut, 32) > 1.3 > 1.01 >= score(original, cut, 36)


def test_blended_seams_score_below_one(pair):
    original, recon = pair
    blended = recon.clone().float()
    for plane in range(32, SHAPE[0], 32):
        middle = (blended[plane - 1] + blended[plane]) / 2
        blended[plane - 1], blended[plane] = middle, middle
    assert score(original, blended, 32) < 0.9


def test_tiles_may_differ_from_axis_to_axis():
    original, recon = _volume(0)
    cut = recon.clone()
    cut[:, 40:] += 60
    assert score(original, cut, (112, 40, 92)) > 1.3
    assert score(original, cut, (40, 100, 92)) == pytest.approx(1, abs=0.01)


def test_a_volume_equals_itself_and_does_not_overflow():
    original, _ = _volume(0)
    assert score(original, original, 32) == 1.0
    large = (original.int() * 100).clamp(-32768, 32767).to(torch.int16)
    assert seam_score(large, large, 32, -32768, 32767) == 1.0


def test_the_score_is_empty_where_no_seam_can_be_told():
    original, recon = _volume(0)
    assert score(original, recon, 112) == 1.0  # one tile
    assert math.isnan(score(original, recon, (96, 100, 92)))  # 16 voxels from the end
    assert math.isnan(score(original, recon, 16))  # too few other planes
    assert math.isnan(score(torch.zeros_like(recon), recon, 32))


def test_axes_may_be_flipped_where_tiles_fill_the_volume():
    original, recon = (volume[:96, :96, :64] for volume in _volume(1))
    cut = _with_step(recon, 32, 6)
    flipped = score(original.flip(0, 1), cut.flip(0, 1), 32)
    assert flipped == pytest.approx(score(original, cut, 32), rel=0.03) and flipped > 1.1


@pytest.mark.parametrize(
    ("shapes", "tile_size", "message"),
    [
        (((1, 8, 8, 8), (1, 8, 8, 8)), 8, r"volumes \(X, Y, Z\) of one shape, got \(1, 8, 8, 8\)"),
        (((16, 16, 16), (16, 16, 15)), 8, "of one shape"),
        (((16, 16, 16), (16, 16, 16)), (8, 8), "one or three numbers"),
        (((16, 16, 16), (16, 16, 16)), 0, "one or three numbers of voxels, got 0"),
    ],
)
def test_wrong_arguments_are_refused(shapes, tile_size, message):
    with pytest.raises(ValueError, match=message):
        score(*(torch.from_numpy(np.zeros(shape)) for shape in shapes), tile_size)
