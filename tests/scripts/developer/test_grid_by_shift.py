from types import SimpleNamespace

import numpy as np
import pytest

from scripts.developer import grid_by_shift


class Network:
    """Draws a grid at every fourth slice of what it is given."""

    stride = 4

    def __init__(self, ckpt_path):
        self.depth_hu = 60 if ckpt_path == "draws a grid" else 0

    def reconstruct(self, voxels):
        lattice = np.zeros(voxels.shape, np.int16)
        lattice[:, :, ::4] = self.depth_hu
        return SimpleNamespace(recon=voxels + lattice)


def scores(monkeypatch, voxels, name):
    monkeypatch.setattr(grid_by_shift, "TrainedModel", Network)
    lines = grid_by_shift.compare_shifts(voxels, name, 2)
    return [float(line.rpartition(" ")[2]) for line in lines]


@pytest.fixture
def noise():
    return np.random.default_rng(0).normal(0, 20, (20, 20, 101)).astype(np.int16)


def test_the_mean_of_shifts_has_no_grid_of_the_network(monkeypatch, noise):
    original, *shifted, mean, difference = scores(monkeypatch, noise, "draws a grid")
    assert min(shifted) > 10 > 1.5 > max(original, mean) and difference > 10


def test_the_mean_of_shifts_keeps_a_grid_of_the_volume(monkeypatch, noise):
    noise[:, :, ::4] += 60
    original, *shifted, mean, difference = scores(monkeypatch, noise, "draws none")
    assert min(original, *shifted, mean) > 10 and difference == 1
