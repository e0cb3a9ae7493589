import torch

from bundle.losses.feature_matching import feature_matching_loss


def test_it_is_the_sum_over_maps_of_mean_absolute_differences_without_the_logits():
    real = [torch.zeros(2, 3), torch.zeros(4), torch.zeros(5)]
    fake = [torch.full((2, 3), 2.0), torch.tensor([1.0, 0.0, 0.0, -1.0]), torch.full((5,), 100.0)]
    assert feature_matching_loss(real, fake) == 2.5


def test_gradients_reach_the_reconstruction_only():
    real, fake = torch.ones(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    feature_matching_loss([real, real], [fake, fake]).backward()
    assert real.grad is None
    torch.testing.assert_close(fake.grad, torch.full((3,), -1 / 3))
