"""R1 and LeCam against their papers' equations on discriminators that can be derived by hand."""

import pytest
import torch
from torch import nn

from bundle.losses.stabilisers import LeCamAnchors, r1_penalty


class Quadratic(nn.Module):
    """D(x) = 0.5 a |x|^2 per sample: its gradient at x is a x, so R1 is a^2 mean |x|^2."""

    def __init__(self, a: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))

    def forward(self, image):
        return 0.5 * self.a * image.square().flatten(1).sum(dim=1)[:, None]


def test_r1_is_the_mean_squared_gradient_at_real_images_and_its_own_gradient_is_right():
    discriminator, image = Quadratic(3.0), torch.randn(4, 1, 5, 6).requires_grad_(True)
    squares = image.detach().square().flatten(1).sum(dim=1).mean()

    penalty = r1_penalty(image, discriminator(image))
    penalty.backward()

    torch.testing.assert_close(penalty, 9 * squares)
    torch.testing.assert_close(discriminator.a.grad, 6 * squares)  # d(a^2 s)/da


def test_r1_of_a_patch_discriminator_is_that_of_its_mean_logit():
    weight = torch.randn(1, 1, 3, 3, dtype=torch.float64)
    image = torch.randn(2, 1, 8, 8, dtype=torch.float64).requires_grad_(True)

    penalty = r1_penalty(image, nn.functional.conv2d(image, weight))

    # D is linear in the image, so the gradient of a sample is the response to each voxel alone
    units = torch.eye(64, dtype=torch.float64).view(64, 1, 8, 8)
    responses = nn.functional.conv2d(units, weight).flatten(1).mean(dim=1)
    torch.testing.assert_close(penalty.double(), responses.square().sum(), rtol=1e-6, atol=0)


def test_r1_of_a_batch_is_the_mean_over_its_parts():
    discriminator = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 1, 3))
    image = torch.randn(4, 1, 9, 9).requires_grad_(True)

    whole = r1_penalty(image, discriminator(image))
    parts = [r1_penalty(part, discriminator(part)) for part in image.split(1)]
    torch.testing.assert_close(whole, torch.stack(parts).mean(), rtol=1e-5, atol=0)


def test_before_the_first_step_lecam_pulls_to_nothing():
    assert LeCamAnchors().penalty("image", torch.randn(3, 1), torch.randn(3, 1)) == 0.0


def anchors_after(*pairs, decay=0.99):
    anchors = LeCamAnchors(decay)
    for real, fake in pairs:
        anchors.start()
        anchors.collect("video", torch.tensor([real]), torch.tensor([fake]), 1.0)
        anchors.update()
    return anchors


def test_lecam_is_the_squared_distance_to_the_other_side_s_average_and_so_is_its_gradient():
    anchors = anchors_after((2.0, -1.0))
    real, fake = (torch.tensor(values, requires_grad=True) for values in ([1.0, 3.0], [0.0, -2.0]))

    penalty = anchors.penalty("video", real, fake)
    penalty.backward()

    # ((1+1)^2 + (3+1)^2) / 2 = 10 and ((0-2)^2 + (-2-2)^2) / 2 = 10
    assert float(penalty.detach()) == pytest.approx(20.0, rel=1e-5)
    torch.testing.assert_close(real.grad, torch.tensor([2.0, 4.0]), rtol=1e-5, atol=0)
    torch.testing.assert_close(fake.grad, torch.tensor([-2.0, -4.0]), rtol=1e-5, atol=0)


def test_the_anchors_are_bias_corrected_moving_averages():
    anchors = anchors_after((1.0, 10.0), (2.0, 20.0), (3.0, 30.0), decay=0.5)
    expected = (3.0 * 0.5 + 2.0 * 0.25 + 1.0 * 0.125) / 0.875

    zero = torch.zeros(1)
    assert float(anchors.penalty("video", zero, zero)) == pytest.approx(expected**2 * 101, rel=1e-6)


def test_micro_batches_move_the_anchors_like_the_full_batch_and_a_repetition_starts_anew():
    whole, parts = LeCamAnchors(), LeCamAnchors()
    real, fake = torch.randn(4, 1), torch.randn(4, 1)
    whole.collect("image", real, fake, 1.0)
    whole.update()

    parts.collect("image", torch.full((1, 1), 9.0), fake[:1], 0.25)  # ran out of memory after this
    parts.start()
    for part in range(4):
        parts.collect("image", real[part : part + 1], fake[part : part + 1], 0.25)
    parts.update()
    torch.testing.assert_close(parts.state_dict(), whole.state_dict())


def test_the_anchors_are_in_the_state_dict():
    anchors, fresh = anchors_after((2.0, -1.0)), LeCamAnchors()
    fresh.load_state_dict(anchors.state_dict())

    pair = torch.randn(3), torch.randn(3)
    assert torch.equal(fresh.penalty("video", *pair), anchors.penalty("video", *pair))
