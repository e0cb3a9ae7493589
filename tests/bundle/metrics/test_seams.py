"""The seam score tells tiles that were cut from tiles that were not."""

from __future__ import annotations

import math

import pytest
import torch

from bundle.metrics.seams import seam_score


def _anatomy(shape: tuple[int, int, int] = (48, 40, 36)) -> torch.Tensor:
    """Smooth structure with noise, in HU."""
    generator = torch.Generator().manual_seed(3)
    x, y, z = torch.meshgrid(*(torch.linspace(0, 2, n) for n in shape), indexing="ij")
    return 300 * torch.sin(x + y) * torch.cos(z) + 5 * torch.randn(shape, generator=generator)


def _with_seams(volume: torch.Tensor, side: int, jump_hu: float) -> torch.Tensor:
    """Every second tile in each direction is shifted by `jump_hu`."""
    parity = sum(torch.meshgrid(*(torch.arange(n) // side for n in volume.shape), indexing="ij")) % 2
    return volume + jump_hu * parity


def test_a_volume_without_seams_scores_one() -> None:
    assert seam_score(_anatomy(), 16) == pytest.approx(1.0, abs=0.05)


def test_the_score_grows_with_the_jump_between_tiles() -> None:
    scores = [seam_score(_with_seams(_anatomy(), 16, jump), 16) for jump in (0.0, 40.0, 80.0, 160.0)]
    assert scores == sorted(scores) and scores[1] > 1.1 and scores[3] > 4


def test_a_seam_is_found_only_with_the_tile_size_that_made_it() -> None:
    cut = _with_seams(_anatomy(), 16, 100.0)
    assert seam_score(cut, 16) > 2 > 1.1 > seam_score(cut, 20)


def test_tiles_may_differ_from_axis_to_axis() -> None:
    cut = _anatomy()
    cut[:, 24:] += 200
    assert seam_score(cut, (48, 24, 36)) > 3
    assert seam_score(cut, (24, 40, 36)) == pytest.approx(1.0, abs=0.1)


def test_the_texture_of_a_strided_decoder_is_no_seam() -> None:
    texture = (torch.arange(48) // 4 % 2 * 30.0).view(-1, 1, 1)
    assert seam_score(_anatomy() + texture, 16) == pytest.approx(1.0, abs=0.1)


def test_a_volume_inside_one_tile_scores_one_and_a_lone_jump_infinity() -> None:
    step = torch.zeros(32, 32, 32)
    assert seam_score(step, 32) == 1.0 and seam_score(step, 16) == 1.0
    step[16:] = 50
    assert seam_score(step, 16) == math.inf


def test_integer_volumes_do_not_overflow() -> None:
    cut = torch.full((32, 16, 16), -30000, dtype=torch.int16)
    cut[16:] = 30000
    cut[12:14] = -29000
    assert seam_score(cut, 16) == pytest.approx(seam_score(cut.double(), 16))


@pytest.mark.parametrize(
    ("shape", "tile_size", "message"),
    [
        ((1, 8, 8, 8), 8, r"volume \(X, Y, Z\), got \(1, 8, 8, 8\)"),
        ((16, 16, 16), 4, "at least 8 voxels, got 4"),
        ((16, 16, 16), (8, 8), "one or three numbers"),
    ],
)
def test_wrong_arguments_are_refused(shape, tile_size, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        seam_score(torch.zeros(shape), tile_size)
