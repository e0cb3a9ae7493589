import torch
from torch import tensor

from bundle.losses.adversarial import hinge_discriminator_loss, hinge_generator_loss


def test_generator_hinge_is_minus_the_mean_logit():
    assert hinge_generator_loss(tensor([1.0, -4.0])) == 1.5


def test_discriminator_hinge_is_half_of_both_relus():
    # 0.5 (mean(relu(1 - 3), relu(1 - 0.5)) + mean(relu(1 - 2), relu(1 + 1)))
    assert hinge_discriminator_loss(tensor([3.0, 0.5]), tensor([-2.0, 1.0])) == 0.5 * (0.25 + 1.0)


def test_hinge_stops_at_the_margin_and_does_not_saturate_before_it():
    logits = tensor([0.9, 1.1], requires_grad=True)
    hinge_discriminator_loss(logits, tensor([-5.0])).backward()
    assert logits.grad.tolist() == [-0.25, 0.0]


def test_losses_are_float32_for_bf16_logits():
    assert hinge_generator_loss(torch.ones(3, dtype=torch.bfloat16)).dtype == torch.float32
