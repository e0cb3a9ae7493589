"""The reach that is computed from the layers is the one that gradients show."""

import pytest
import torch
from monai.networks.blocks import Convolution, SubpixelUpsample, UpSample
from torch import nn

from bundle.networks.decoder import BlurredUpsample
from bundle.networks.receptive_field import halo_radius, input_interval
from bundle.networks.vqgan import build_vqgan

SIZE = 32  # input positions, so that reaches end inside


class Doubled(nn.Module):
    """A layer that no rule knows."""

    def forward(self, features):
        return features.repeat_interleave(2, dim=2)


def reach_of_gradients(layers, first, last):
    features = torch.rand(1, 2, *[SIZE] * 3, requires_grad=True)
    output = layers(features)
    output[:, :, first : last + 1, first : last + 1, first : last + 1].sum().backward()
    reached = features.grad.abs().sum(dim=(0, 1, 3, 4)).nonzero().flatten()
    return int(reached.min()), int(reached.max())


STACKS = {
    "convolution": [nn.Conv3d(2, 2, 3, padding=1)],
    "same padding": [nn.Conv3d(2, 2, 3, padding="same")],
    "dilated": [nn.Conv3d(2, 2, 3, dilation=2, padding=2)],
    "strided": [nn.Conv3d(2, 2, 4, stride=2, padding=1), nn.LeakyReLU()],
    "transposed": [nn.ConvTranspose3d(2, 2, 4, stride=2, padding=1)],
    "blurred upsampling": [BlurredUpsample(2, 2), nn.Conv3d(2, 2, 3, padding=1)],
    "nearest upsampling": [nn.Conv3d(2, 2, 3), nn.Upsample(scale_factor=2.0, mode="nearest")],
    "nearest, then convolution": [nn.Upsample(scale_factor=2), nn.Conv3d(2, 2, 3, padding=1)],
    "average pooling": [nn.AvgPool3d(3, stride=1, padding=1)],
    "padding before only": [nn.ConstantPad3d((1, 0) * 3, 0.0), nn.AvgPool3d(2, stride=1)],
    "edge values": [nn.ReplicationPad3d((2, 1) * 3), nn.Conv3d(2, 2, 4)],
    "sub-voxel shuffle": [SubpixelUpsample(3, 2, 2, apply_pad_pool=False)],
    "sub-voxel shuffle and its blur": [SubpixelUpsample(3, 2, 2), nn.Conv3d(2, 2, 3, padding=1)],
    "MONAI's upsampling": [UpSample(3, 2, 2, mode="deconv"), Convolution(3, 2, 2, act="PRELU", norm=None)],
    "two levels": [BlurredUpsample(2, 2), BlurredUpsample(2, 2), nn.Conv3d(2, 2, 3, padding=1)],
}


@pytest.mark.parametrize("layers", STACKS.values(), ids=STACKS)
@pytest.mark.parametrize("span", [(9, 9), (9, 12), (10, 10)])
def test_the_computed_interval_is_the_one_that_gradients_reach(layers, span):
    layers = nn.Sequential(*layers)
    for parameter in layers.parameters():
        nn.init.uniform_(parameter, 0.1, 1.0)  # no cancellation, and no dead activation
    assert input_interval(layers, *span) == reach_of_gradients(layers, *span)


@pytest.mark.parametrize(
    "layer",
    [
        Doubled(),
        nn.Upsample(scale_factor=2, mode="trilinear"),
        nn.Upsample(size=8),
        nn.Conv3d(2, 2, 3, padding=1, padding_mode="circular"),
        nn.Conv3d(2, 2, (3, 3, 1), padding=(1, 1, 0)),
        nn.ReflectionPad3d(1),
        nn.GroupNorm(1, 2),
        nn.InstanceNorm3d(2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_layer_whose_reach_is_not_known_is_refused_by_name(layer):
    with pytest.raises(ValueError, match=f"`network` has a layer {type(layer).__name__} .*halo"):
        input_interval(nn.Sequential(nn.Conv3d(2, 2, 3), layer), 0, 0)


def test_the_blur_of_a_shuffle_widens_the_halo():
    encoder = nn.Sequential(nn.Conv3d(1, 2, 2, stride=2))
    for blur, halo in ((False, 4), (True, 6)):
        shuffle = SubpixelUpsample(3, 2, 2, apply_pad_pool=blur)
        decoder = nn.Sequential(shuffle, nn.Conv3d(2, 2, 5, padding=2))
        assert halo_radius(encoder, decoder, 2) == halo


@pytest.mark.parametrize("preset", ["default", "large", "lite"])
def test_every_layer_of_every_preset_has_a_rule(preset):
    with torch.device("meta"):
        network = build_vqgan(preset, "ema", 64)
    halo = {"default": 44, "large": 44, "lite": 20}[preset]
    assert network.halo == halo_radius(network.encoder, network.decoder, network.stride) == halo
