"""Reconstructing int16 volumes tile by tile, and only where they differ."""

import numpy as np
import pytest
import torch

from bundle.checkpoints.file import CheckpointError, network_settings, read_checkpoint, write_checkpoint
from bundle.evaluation.model import TrainedModel
from bundle.inferers.halo import HaloInferer
from bundle.networks.vqgan import build_vqgan

SHAPE = (34, 29, 22)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    network = build_vqgan("lite", "ema", 64)
    with torch.no_grad():
        network.quantizer.initialize(network.encode_latent(torch.rand(1, 1, 32, 32, 32) * 2 - 1))
    path = tmp_path_factory.mktemp("model") / "model.pt"
    told = {"patients": ["0123456789abcdef"], "voxels": ["fedcba9876543210"]}
    settings = network_settings("lite", "ema", 64, -1000, 1000)
    write_checkpoint(path, {"model": network.state_dict(), "network": settings, "trained_on": told})
    return path


def volume():
    return np.random.default_rng(0).integers(-1500, 1500, SHAPE, np.int16)


@pytest.mark.parametrize("tile_size", [16, 64])
def test_a_reconstruction_is_that_of_the_inferer(checkpoint, tile_size):
    model = TrainedModel(checkpoint, tile_size=tile_size)
    image = torch.from_numpy(volume()).float().div(1000).clamp(-1, 1)[None, None]
    inferer = HaloInferer(tile_size=64)
    expected = inferer(image, model.network)[0, 0].clamp(-1, 1).mul(1000).round().numpy()
    coded = model.reconstruct(volume())
    assert coded.recon.dtype == np.int16 and coded.recon.shape == SHAPE
    assert np.abs(coded.recon - expected).max() <= 1
    assert np.array_equal(coded.indices, inferer.encode(image, model.network)[0].numpy())


@pytest.mark.parametrize("voxel", [pytest.param((0, 0, 0), marks=pytest.mark.slow), (33, 28, 21)])
def test_tiles_that_look_the_same_are_taken_over_and_nothing_else(checkpoint, voxel):
    model = TrainedModel(checkpoint, tile_size=16)
    plain = model.reconstruct(volume())
    changed = volume()
    changed[tuple(slice(max(at - 11, 0), at + 12) for at in voxel)] = -1000
    shortcut, whole = model.reconstruct(changed, plain), model.reconstruct(changed)
    assert np.array_equal(shortcut.indices, whole.indices)
    assert np.array_equal(shortcut.recon, whole.recon)
    assert not np.array_equal(whole.recon, plain.recon)


def test_a_model_knows_how_it_was_trained_where_its_checkpoint_says_so(checkpoint, tmp_path):
    assert TrainedModel(checkpoint).recipe == {}
    content = read_checkpoint(checkpoint) | {"recipe": {"seed": 3, "base": ""}}
    for name, voxels in {"a": ["0" * 16, "1" * 16], "b": ["0" * 16]}.items():
        write_checkpoint(tmp_path / name, content | {"trained_on": {"voxels": voxels}})
    a, b = (TrainedModel(tmp_path / name).recipe for name in "ab")
    assert (a["seed"], a["base"]) == (3, "") and a["data"] != b["data"]


def test_a_model_knows_what_it_was_trained_on(checkpoint):
    trained_on = TrainedModel(checkpoint).trained_on
    assert trained_on == {"patients": {"0123456789abcdef"}, "voxels": {"fedcba9876543210"}}


@pytest.mark.parametrize("tile_size", [6, 4])
def test_a_tile_that_breaks_the_rule_is_refused(checkpoint, tile_size):
    with pytest.raises(
        ValueError, match=f"`tile_size` must be a multiple of 4 and at least 8, got {tile_size}"
    ):
        TrainedModel(checkpoint, tile_size=tile_size)


def test_a_checkpoint_that_does_not_name_its_network_is_refused(tmp_path):
    write_checkpoint(tmp_path / "odd.pt", {"model": {}, "network": {"preset": "lite"}})
    with pytest.raises(CheckpointError, match="odd.pt: "):
        TrainedModel(tmp_path / "odd.pt")
