"""Sampling, held against a network that knows the answer."""

import pytest
import torch
from torch import nn

from bundle.inferers.diffusion import PositionedDiffusion, sample_image
from bundle.inferers.halo import HaloInferer
from bundle.run.rules import SettingsError

STEPS = 30


class Oracle(nn.Module):
    """Predicts exactly the noise that turned `answer` into what it sees; keeps the positions it was given."""

    def __init__(self, answer, scheduler):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.answer, self.alphas = answer, scheduler.alphas_cumprod

    def forward(self, x, timesteps, context=None):
        assert context is None
        noisy, self.position = x[:, :-3], x[:, -3:]
        alpha = self.alphas[timesteps.long()].view(-1, 1, 1, 1, 1)
        return (noisy - alpha.sqrt() * self.answer) / (1 - alpha).sqrt()


@pytest.fixture
def diffusion():
    return PositionedDiffusion(STEPS)


def test_a_network_that_knows_the_noise_samples_what_the_codes_decode_to(tiny_vqgan, diffusion):
    vqgan = tiny_vqgan()
    indices = torch.randint(0, 32, (1, 4, 3, 2))
    position = torch.rand(3, 4, 3, 2)
    answer = (vqgan.quantizer.indices_to_codes(indices) - 0.5) / 2
    oracle = Oracle(answer, diffusion.scheduler)

    image = sample_image(
        diffusion,
        oracle,
        position,
        lambda z: 2 * z + 0.5,
        vqgan,
        HaloInferer(16),
        seed=1,
    )

    with torch.no_grad():
        torch.testing.assert_close(image, vqgan.decode(indices)[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(oracle.position[0], position)


def test_the_fewest_timesteps_keep_some_of_the_image_in_each_and_fewer_are_refused():
    assert 0 < PositionedDiffusion(20).scheduler.betas.max() < 1

    with pytest.raises(SettingsError, match="`timesteps` must be a whole number from 20, got 19"):
        PositionedDiffusion(19)


def test_a_sample_depends_on_its_seed_alone_and_leaves_the_random_state(tiny_vqgan, diffusion):
    vqgan, position = tiny_vqgan(), torch.zeros(3, 3, 3, 3)
    network = Oracle(torch.zeros(()), diffusion.scheduler)
    network.alphas = torch.zeros_like(network.alphas)  # predicts what it sees

    def sample(seed):
        return sample_image(diffusion, network, position, lambda z: z, vqgan, HaloInferer(16), seed)

    torch.manual_seed(5)
    first = sample(1)
    assert torch.initial_seed() == 5
    torch.manual_seed(6)
    assert torch.equal(first, sample(1))
    assert not torch.equal(first, sample(2))


def test_in_training_the_network_sees_noisy_latents_and_positions(diffusion):
    latents, noise, position = (
        torch.randn(2, 8, 3, 3, 3),
        torch.randn(2, 8, 3, 3, 3),
        torch.rand(2, 3, 3, 3, 3),
    )
    oracle = Oracle(latents, diffusion.scheduler)
    arguments = {"noise": noise, "timesteps": torch.tensor([0, STEPS - 1]), "condition": position}

    torch.testing.assert_close(diffusion(latents, oracle, **arguments), noise, rtol=1e-3, atol=1e-3)
    assert torch.equal(oracle.position, position)
