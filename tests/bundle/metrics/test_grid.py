import math
from pathlib import Path

import pytest
import torch
from torch.nn.functional import avg_pool3d

from bundle.data.volumes.reading import read_volume
from bundle.metrics import grid
from bundle.metrics.grid import grid_score

REAL = Path(__file__).resolve().parents[2] / "data" / "lidc_idri_0001_validation.nii.gz"


@pytest.fixture(scope="module")
def texture():
    """Noise of 5 HU whose power falls with frequency, as a scanner draws it."""
    noise = torch.randn(97, 81, 73, generator=torch.Generator().manual_seed(0)) * 15
    return avg_pool3d(noise[None], 2, stride=1)[0]


def planted(volume, axis, period, hu):
    """A wave of `hu` with that period along one axis."""
    wave = hu * torch.cos(2 * math.pi / period * torch.arange(volume.shape[axis]) + 0.3)
    shape = [1, 1, 1]
    shape[axis] = -1
    return volume + wave.view(shape)


def test_white_noise_has_about_one():
    assert 1 <= grid_score(torch.randn(128, 100, 90)) < 1.3


def test_real_ct_stays_at_one_and_a_grid_in_it_does_not():
    scan = torch.from_numpy(read_volume(REAL).voxels)
    assert grid_score(scan) < 1.3
    assert grid_score(planted(scan, 0, 2, hu=8)) > 10
    assert grid_score(planted(scan, 0, 4, hu=30)) > 10


def test_a_blur_passes(texture):
    assert grid_score(texture) < 1.5
    assert grid_score(avg_pool3d(texture[None], 2, stride=1)[0]) < 1.5


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("period", [2, 4])
def test_a_faint_grid_along_any_axis_stands_far_above(texture, axis, period):
    assert grid_score(planted(texture, axis, period, hu=8)) > 10


def test_a_stronger_grid_scores_higher(texture):
    scores = [grid_score(planted(texture, 0, 2, hu)) for hu in (0, 4, 8, 16)]
    assert scores == sorted(scores)
    assert scores[3] == pytest.approx(4 * scores[2], rel=0.3)  # power goes with the square


def test_other_periods_are_no_grid(texture):
    assert grid_score(planted(texture, 0, 3, hu=16)) == pytest.approx(grid_score(texture), rel=0.05)


def test_a_grid_that_only_some_parts_carry_is_found(texture):
    volume = texture.clone()
    volume[:, 20:40] = planted(volume, 0, 2, hu=30)[:, 20:40]
    assert grid_score(volume) > 10


def test_unit_type_and_layout_change_nothing(texture):
    volume = planted(texture, 1, 4, hu=8)
    score = grid_score(volume)
    assert grid_score(volume / 1000 - 0.2) == pytest.approx(score, rel=1e-3)
    assert grid_score(volume.permute(2, 0, 1)) == pytest.approx(score, rel=1e-3)
    assert grid_score(volume.round().short()) == pytest.approx(score, rel=0.1)


def test_slabs_of_any_thickness_give_the_same(texture, monkeypatch):
    score = grid_score(texture)
    monkeypatch.setattr(grid, "SLAB_LINES", 100)
    assert grid_score(texture) == pytest.approx(score, rel=1e-4)


def test_long_axes_are_cut_into_segments():
    volume = torch.randn(300, 16, 16)
    assert grid_score(planted(volume, 0, 2, 1.0)) > 20
    volume[:128] = planted(volume[:128], 0, 4, 1.0)
    assert grid_score(volume) > 10


def test_what_has_no_spectrum_has_a_plain_answer():
    assert grid_score(torch.zeros(48, 48, 48)) == 1
    assert grid_score(planted(torch.zeros(48, 48, 48), 2, 4, 1.0)) > 1e6
    assert math.isnan(grid_score(torch.randn(47, 47, 47)))
    assert math.isnan(grid_score(torch.full((48, 48, 48), math.nan)))
    with pytest.raises(ValueError, match=r"`volume` must be a volume \(X, Y, Z\), got \(1, 48, 48, 48\)"):
        grid_score(torch.zeros(1, 48, 48, 48))
