import pytest
import torch
from torch import nn

from bundle.losses.discriminator import DiscriminatorFeatures, DiscriminatorObjective
from bundle.losses.objective import GeneratorObjective
from bundle.losses.views import draw_positions
from bundle.networks.discriminators import build_discriminators
from bundle.networks.vqgan import Reconstruction

SHAPE = (2, 1, 24, 24, 24)


class MeanDistance(nn.Module):
    """A perceptual distance that can be computed by hand."""

    def forward(self, real, fake):
        return (real - fake).abs().mean(dim=(1, 2, 3))


@pytest.fixture
def pair():
    image = torch.rand(SHAPE) * 2 - 1
    return image, Reconstruction(
        (image + 0.1 * torch.randn(SHAPE)).requires_grad_(), torch.tensor(0.3), torch.zeros(1)
    )


def run(objective, pair, gate):
    return objective(*pair, draw_positions(torch.Size(SHAPE), 0, 0), gate)


def test_below_the_gate_it_is_l1_and_commitment_whatever_the_other_weights(pair):
    objective = GeneratorObjective(
        2.0, 0.25, 0.1, 1.0, 0.5, 4.0, build_discriminators(1, 0.5), MeanDistance()
    )
    total, terms = run(objective, pair, gate=0)
    l1 = (pair[0] - pair[1].image).abs().mean()
    torch.testing.assert_close(total, 2 * l1 + 0.25 * 0.3)
    assert set(terms) == {"recon_loss", "commitment_loss"}


def test_above_the_gate_the_total_is_the_weighted_sum_of_the_logged_terms(pair):
    objective = GeneratorObjective(
        1.0, 0.25, 0.1, 1.0, 0.5, 4.0, build_discriminators(1, 0.5), MeanDistance()
    )
    total, terms = run(objective, pair, gate=1)
    expected = (
        terms["recon_loss"] + 0.25 * terms["commitment_loss"] + 0.1 * terms["perceptual_loss"]
        + terms["gen_loss"] + 4.0 * terms["gan_feat_loss"]
    )  # fmt: skip
    torch.testing.assert_close(total.detach(), expected)


def test_the_ramp_scales_adversarial_terms_and_not_what_is_logged(pair):
    objective = GeneratorObjective(1.0, 0.25, 0.0, 1.0, 0.5, 4.0, build_discriminators(1, 0.5))
    (low, low_terms), (high, high_terms), (base, _) = (
        run(objective, pair, gate) for gate in (0.25, 1.0, 0.0)
    )
    torch.testing.assert_close(low - base, 0.25 * (high - base))
    assert low_terms["gen_loss"] == high_terms["gen_loss"]


def test_generator_term_is_minus_the_weighted_mean_logit_of_each_discriminator(pair):
    discriminators = build_discriminators(1, 0.5)
    _, terms = run(GeneratorObjective(1, 0, 0, 1.0, 0.5, 0, discriminators), pair, gate=1)
    positions, fake = draw_positions(torch.Size(SHAPE), 0, 0), pair[1].image.detach()
    slices = torch.cat(
        [
            torch.stack([fake[s].select(axis + 1, int(positions[s, axis])) for s in range(2)])
            for axis in range(3)
        ]
    )
    expected = -discriminators["image"](slices)[-1].mean() - 0.5 * discriminators["video"](fake)[-1].mean()
    torch.testing.assert_close(terms["gen_loss"], expected.detach())
    assert "gan_feat_loss" not in terms


def test_gradients_pass_through_frozen_discriminators_without_staying_in_them(pair):
    discriminators = build_discriminators(1, 0.5)
    run(GeneratorObjective(0, 0, 0, 1.0, 0.5, 4.0, discriminators), pair, gate=1)[0].backward()
    assert pair[1].image.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in discriminators.parameters())


@pytest.mark.parametrize(("feature_weight", "stabilised"), [(4.0, {}), (0.0, {}), (4.0, {"r1_gamma": 10.0})])
def test_features_kept_for_the_discriminators_step_change_no_gradient(pair, feature_weight, stabilised):
    discriminators = build_discriminators(1, 0.5)
    weights, positions = list(discriminators.parameters()), draw_positions(torch.Size(SHAPE), 0, 0)
    objective = GeneratorObjective(1, 0, 0, 1.0, 0.5, feature_weight, discriminators)
    theirs = DiscriminatorObjective(discriminators, objective.gan_weights, **stabilised)
    gradients, losses = [], []
    for kept in (None, DiscriminatorFeatures()):
        image, reconstruction = pair
        reconstruction.image.grad = None
        total, _ = objective(image, reconstruction, positions, 0.5, kept=kept)
        (0.25 * total).backward()
        assert all(weight.grad is None for weight in weights)
        discriminators.requires_grad_(True)
        fake = reconstruction.image.detach()
        loss, penalty = theirs(["image", "video"], image, fake, positions, 1.0, kept)
        own = torch.autograd.grad(loss + penalty, weights, allow_unused=True)
        discriminators.requires_grad_(False)
        gradients.append([reconstruction.image.grad, *own])
        losses.append((total.detach(), loss.detach(), penalty))
    for alone, shared in zip(*gradients, strict=True):
        assert (alone - shared).norm() <= 1e-5 * alone.norm()
    torch.testing.assert_close(losses[0], losses[1])
    assert kept.fake == {} == kept.real


def test_patches_that_are_no_cubes_weigh_their_axes_alike():
    image, positions = torch.zeros(1, 1, 24, 32, 40), torch.tensor([[1, 2, 3]])
    fake = image.clone()
    fake[:, :, 1] = 1.0  # only the sagittal slice differs, and a line of each other slice
    reconstruction = Reconstruction(fake, torch.tensor(0.0), torch.zeros(1))
    _, terms = GeneratorObjective(1, 0, 1.0, perceptual=MeanDistance())(image, reconstruction, positions, 1.0)
    torch.testing.assert_close(terms["perceptual_loss"], torch.tensor((1 + 1 / 24 + 1 / 24) / 3))


def test_loss_margin_leaves_the_faces_out():
    image, fake = torch.zeros(1, 1, 8, 8, 8), torch.ones(1, 1, 8, 8, 8)
    fake[..., 2:6, 2:6, 2:6] = 0.5
    reconstruction = Reconstruction(fake, torch.tensor(0.0), torch.zeros(1))
    _, terms = GeneratorObjective(1, 0, loss_margin=2)(image, reconstruction, torch.zeros(1, 3).long(), 0)
    assert terms["recon_loss"] == 0.5


def test_a_perceptual_weight_without_a_backbone_is_refused():
    with pytest.raises(ValueError, match="`perceptual` must be given"):
        GeneratorObjective(1, 0.25, perceptual_weight=0.1)
