"""Slabs give what one pass over the whole gives, whatever their thickness, and nothing is computed twice."""

import pytest
import torch
from monai.networks.blocks import Convolution
from monai.networks.nets.vqvae import VQVAEResidualUnit
from torch import nn

from bundle.networks.decoder import BlurredUpsample
from bundle.networks.slabs import InFloat32, InSlabs
from bundle.networks.vqgan import build_vqgan

STACKS = {
    "convolution": [nn.Conv3d(2, 3, 3, padding=1)],
    "wide kernel": [nn.Conv3d(2, 3, 5, padding=2), nn.ReLU()],
    "each position alone": [nn.Conv3d(2, 3, 1), lambda slab: slab * 2],
    "strided": [nn.Conv3d(2, 4, 4, stride=2, padding=1), nn.ReLU(), nn.Conv3d(4, 4, 4, stride=2, padding=1)],
    "another reach across": [nn.Conv3d(2, 3, 3, padding=(1, 2, 2), dilation=(1, 2, 2))],
    "in groups": [nn.Conv3d(2, 4, 3, padding=1, groups=2, bias=False)],
    "MONAI's": [Convolution(3, 2, 4, adn_ordering="DA", act="RELU", dropout=0.0)],
    "residual unit": [VQVAEResidualUnit(3, 2, 6), VQVAEResidualUnit(3, 2, 6)],
    "upsampling": [BlurredUpsample(2, 3), nn.ReLU(), nn.Conv3d(3, 1, 3, padding=1)],
    "down and up": [
        nn.Sequential(nn.Conv3d(2, 4, 4, stride=2, padding=1), nn.ReLU()),
        nn.ModuleList([VQVAEResidualUnit(3, 4, 4), BlurredUpsample(4, 2), nn.Identity()]),
    ],
    "a stack within": [nn.Conv3d(2, 3, 3, padding=1), InFloat32([nn.Conv3d(3, 1, 3, padding=1)])],
}


def run_whole(layers, features):
    for layer in layers:
        if isinstance(layer, nn.ModuleList):
            features = run_whole(layer, features)
        elif isinstance(layer, InSlabs):
            features = layer.steps[0].layer(features)
        else:
            features = layer(features)
    return features


def run_slabs(layers, features, slices):
    return run_all(InSlabs(layers), features.split(slices, dim=2))


def run_all(run, slabs):
    results = [run(slab, is_last=slab is slabs[-1]) for slab in slabs]
    return torch.cat([result for result in results if result is not None], dim=-3)


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("slices", [1, 2, 3, 5, 24])
@torch.no_grad()
def test_slabs_of_any_thickness_equal_one_pass(name, slices):
    features = torch.randn(2, 2, 24, 6, 8)
    before = features.clone()
    STACKS["a stack within"][1].steps[0].kept = None

    result = run_slabs(STACKS[name], features, slices)

    torch.testing.assert_close(result, run_whole(STACKS[name], features), rtol=0, atol=2e-6)
    assert torch.equal(features, before)


@torch.no_grad()
def test_no_convolution_computes_a_position_twice(tiny_vqgan, monkeypatch):
    network, image, run = tiny_vqgan(), torch.rand(1, 1, 48, 16, 16) * 2 - 1, []
    originals = {name: getattr(nn.functional, name) for name in ("conv3d", "conv_transpose3d")}

    def counting(name):
        def call(slab, weight, *args, **kwargs):
            result = originals[name](slab, weight, *args, **kwargs)
            # a transposed convolution computes per input position
            run.append((slab if name == "conv_transpose3d" else result)[0, 0].numel())
            return result

        return call

    indices = network.encode(image)
    for name in originals:
        monkeypatch.setattr(nn.functional, name, counting(name))
    for slices in (48, 8):
        run.append("|")
        for begin, source, step in (
            (network.encode_in_slabs, image, 1),
            (network.decode_in_slabs, indices, 4),
        ):
            run_all(begin(), source.split(slices // step, dim=-3))

    cut = run.index("|", 1)
    assert sum(run[1:cut]) == sum(run[cut + 1 :]) > 0


@torch.no_grad()
def test_features_keep_the_memory_layout_of_the_weights(monkeypatch):
    """Joined with contiguous zeros they would lose it, and each convolution would take half as long again."""
    network, original, seen = build_vqgan("lite", num_embeddings=16).eval(), nn.functional.conv3d, []

    def looking(slices, weight, *args, **kwargs):
        if slices.shape[1] > 1:
            seen.append(slices.is_contiguous(memory_format=torch.channels_last_3d))
        return original(slices, weight, *args, **kwargs)

    monkeypatch.setattr(nn.functional, "conv3d", looking)
    slabs = network.encode_latent_in_slabs()
    for is_last in (False, False, True):
        slabs(torch.rand(1, 1, 24, 256, 16), is_last)  # torch computes smaller ones another way

    assert len(seen) > 12 and all(seen)


@torch.no_grad()
def test_what_is_kept_does_not_grow_with_the_volume(tiny_vqgan):
    slabs, sizes = tiny_vqgan().encode_latent_in_slabs(), []

    def kept(steps):
        inner = [step.convolutions.steps for step in steps if hasattr(step, "convolutions")]
        tensors = [step.kept for step in steps if getattr(step, "kept", None) is not None]
        return sum(tensor.numel() for tensor in tensors) + sum(map(kept, inner))

    for _ in range(10):
        slabs(torch.rand(1, 1, 8, 16, 16), is_last=False)
        sizes.append(kept(slabs.steps))
    assert sizes[2] == sizes[-1] > 0


@torch.no_grad()
def test_the_last_slab_is_hardly_thicker_than_the_others(tiny_vqgan, monkeypatch):
    """All slices that layers hold back end with it: in one piece they would need several times the memory."""
    network, original, seen = tiny_vqgan(), nn.functional.conv3d, {}

    def looking(slices, weight, *args, **kwargs):
        seen.setdefault(id(weight), []).append(slices.shape[2])
        return original(slices, weight, *args, **kwargs)

    indices = network.encode(torch.rand(1, 1, 80, 16, 16) * 2 - 1)
    monkeypatch.setattr(nn.functional, "conv3d", looking)
    slabs, run = indices.split(2, dim=1), network.decode_in_slabs()
    for slab in slabs[:-1]:
        run(slab, is_last=False)
    expected = {layer: max(slices) for layer, slices in seen.items()}
    seen.clear()
    run(slabs[-1], is_last=True)

    assert seen.keys() == expected.keys()
    assert all(max(slices) <= 2 * expected[layer] for layer, slices in seen.items())


@torch.no_grad()
def test_under_autocast_voxels_stay_float32_as_in_tiles(tiny_vqgan):
    network = tiny_vqgan()
    indices = network.encode(torch.rand(1, 1, 16, 16, 16) * 2 - 1)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        image = run_all(network.decode_in_slabs(), indices.split(2, dim=1))
        expected = network.decode(indices)

    assert image.dtype == torch.float32
    torch.testing.assert_close(image, expected, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    "layer",
    [
        nn.GroupNorm(1, 2),
        nn.Conv3d(2, 2, 3),
        nn.Conv3d(2, 2, 3, padding=2, dilation=2),
        nn.Conv3d(2, 2, 3, padding=1, padding_mode="replicate"),
        nn.Conv3d(2, 2, 3, padding="same"),
    ],
)
def test_a_layer_without_a_rule_is_refused_by_name(layer):
    with pytest.raises(ValueError, match=f"has a layer {type(layer).__name__} that cannot be run in slabs"):
        InSlabs([nn.Sequential(layer)])
