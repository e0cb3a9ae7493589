import pytest
import torch
from torch import nn

from bundle.networks.decoder import SCALE, BlurredUpsample, Decoder


@pytest.fixture
def upsample():
    """With weights that treat every sub-voxel differently, as after training."""
    layer = BlurredUpsample(3, 2)
    nn.init.normal_(layer.scaled_weight)
    return layer


def test_upsampling_is_a_transposed_convolution_and_then_an_average(upsample):
    features = torch.randn(2, 3, 5, 6, 7)
    plain = nn.functional.conv_transpose3d(features, SCALE * upsample.scaled_weight, upsample.bias, stride=2)
    averaged = nn.functional.avg_pool3d(nn.functional.pad(plain, [1] * 6), 2, stride=1)
    result = upsample(features)
    inner = (slice(None), slice(None), *[slice(2, -2)] * 3)
    assert result.shape == (2, 2, 10, 12, 14)
    torch.testing.assert_close(result[inner], averaged[..., 1:-1, 1:-1, 1:-1][inner])


def test_constant_features_stay_constant_whatever_the_weights(upsample):
    inner = upsample(torch.ones(1, 3, 6, 6, 6))[..., 2:-2, 2:-2, 2:-2]
    assert (inner - inner[..., :1, :1, :1]).abs().max() < 1e-5

    plain = nn.ConvTranspose3d(3, 2, 4, stride=2, padding=1)(torch.ones(1, 3, 6, 6, 6))
    assert plain[..., 2:-2, 2:-2, 2:-2].flatten(2).std(dim=-1).min() > 1e-3  # what it stands against


def test_the_first_weights_interpolate_and_keep_the_variance():
    layer = BlurredUpsample(64, 64)
    ramp = torch.arange(8.0).view(1, 1, 8, 1, 1).expand(1, 64, 8, 8, 8)
    middle = layer(ramp)[0, :, 2:-2, 8, 8]
    steps = middle.diff(dim=1)
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps), rtol=1e-3, atol=1e-3)

    features = torch.rand(1, 64, 1, 1, 1).expand(1, 64, 8, 8, 8)
    variance = layer(features)[..., 8, 8, 8].square().mean() / features.square().mean()
    assert 1 < variance < 4  # He: 2, of which ReLU leaves 1


def test_a_step_of_adam_moves_the_kernel_no_less_than_that_of_a_plain_layer():
    plain, layer = nn.ConvTranspose3d(4, 4, 4, stride=2, padding=1), BlurredUpsample(4, 4)
    kernels = {plain: lambda: plain.weight, layer: layer.kernel}
    moved = []
    for module, kernel in kernels.items():
        optimizer, before = torch.optim.Adam(module.parameters(), 1e-3), kernel().detach().clone()
        for _ in range(20):
            optimizer.zero_grad()
            module(torch.randn(1, 4, 4, 4, 4)).square().mean().backward()
            optimizer.step()
        moved.append((kernel() - before).square().mean().sqrt().item())
    assert 1 < moved[1] / moved[0] < 8  # without the scale: 0.6


def test_the_last_convolution_keeps_the_variance():
    last = Decoder(8, (8, 16), 1, 16).blocks[-1]
    features = torch.randn(1, 16, 16, 16, 16).relu()
    variance = last(features)[..., 2:-2, 2:-2, 2:-2].square().mean() / features.square().mean()
    assert 1 < variance < 4  # He: 2, as above


def test_a_decoder_of_any_weights_draws_no_grid_into_constant_codes():
    decoder = Decoder(8, (8, 16), 1, 4)
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        inner = decoder(torch.randn(1, 8, 1, 1, 1).expand(1, 8, 16, 16, 16))[..., 24:-24, 24:-24, 24:-24]
    assert inner.abs().max() > 0
    assert inner.std() < 1e-4 * inner.abs().max()
