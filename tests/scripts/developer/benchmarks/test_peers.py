import pytest
import torch
from monai.networks.nets import VQVAE, PatchDiscriminator

from bundle.losses.perceptual import SlicePerceptualLoss
from bundle.networks.vqgan import VQGAN
from scripts.developer.benchmarks import peers

pytestmark = pytest.mark.slow
TINY = peers.Setting(side=32, batch=1, num_embeddings=16, rounds=1)
BELOW = peers.ALL._replace(is_gate_open=False)


@pytest.fixture
def passes(monkeypatch):
    """How often generators and discriminators were called."""
    counted = {"generator": 0, "discriminator": 0}

    def counting(network_type, method, kind):
        original = getattr(network_type, method)

        def call(*args, **kwargs):
            counted[kind] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(network_type, method, call)

    counting(VQGAN, "reconstruct", "generator")
    counting(VQVAE, "forward", "generator")
    counting(PatchDiscriminator, "forward", "discriminator")
    return counted


@pytest.mark.parametrize(
    ("side", "terms", "generator", "discriminator"),
    [
        (peers.ours, peers.L1_ONLY, 1, 0),
        (peers.stock, peers.L1_ONLY, 1, 0),
        (peers.stock, peers.VOLUME_ONLY, 1, 3),
        (peers.ours, BELOW, 1, 0),
        (peers.textbook, BELOW, 2, 8),
        (peers.textbook, peers.ALL, 2, 8),
    ],
)
def test_each_side_runs_the_passes_that_its_description_says(passes, side, terms, generator, discriminator):
    step = side("lite", TINY, terms, torch.rand(1, 1, 32, 32, 32) * 2 - 1)
    step()
    assert passes == {"generator": generator, "discriminator": discriminator}
    step()
    assert passes == {"generator": 2 * generator, "discriminator": 2 * discriminator}


def test_our_side_runs_both_discriminators_behind_the_gate(passes):
    peers.ours("lite", TINY, peers.ALL, torch.rand(1, 1, 32, 32, 32) * 2 - 1)()
    assert passes == {"generator": 1, "discriminator": 4}


def test_the_textbook_s_perceptual_loss_reaches_the_reconstruction(monkeypatch):
    reached = []
    original = SlicePerceptualLoss.forward

    def forward(self, real, fake):
        reached.append((real.requires_grad, fake.requires_grad))
        return original(self, real, fake)

    monkeypatch.setattr(SlicePerceptualLoss, "forward", forward)
    peers.textbook("lite", TINY, peers.ALL, torch.rand(1, 1, 32, 32, 32) * 2 - 1)()
    assert reached == [(False, True)]


def test_rows_tell_both_sides_and_their_ratio():
    row = peers._compare("lite", TINY, peers.VOLUME_ONLY, peers.stock)
    assert row["times as fast"] == row["theirs"] / row["seconds, ours"] > 0
