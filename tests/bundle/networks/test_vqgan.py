import copy

import pytest
import torch

from bundle.networks.vqgan import PRESETS, build_vqgan
from bundle.run.rules import STRIDE


@pytest.mark.parametrize(
    ("preset", "parameters"), [("default", 24_198_985), ("large", 48_676_297), ("lite", 1_730_089)]
)
def test_presets_have_exactly_the_documented_parameters(preset, parameters):
    with torch.device("meta"):
        network = build_vqgan(preset)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize(("num_res_layers", "halo"), [(1, 20), (2, 32), (3, 44)])
def test_halo_is_computed_from_the_layers(tiny_vqgan, num_res_layers, halo):
    assert tiny_vqgan(num_res_layers=num_res_layers).halo == halo


def test_every_preset_has_the_stride_that_data_and_files_of_codes_are_made_for():
    assert {preset.stride for preset in PRESETS.values()} == {STRIDE}


def test_a_voxel_reaches_as_far_as_the_halo_says_and_no_further(tiny_vqgan):
    network = tiny_vqgan()
    image = torch.randn(1, 1, 96, 8, 8, requires_grad=True)
    network.encode_latent(image)[0, :, 12].sum().backward()  # the cell of voxels 48 to 51
    reached = image.grad.abs().sum(dim=(0, 1, 3, 4)).nonzero().flatten()
    assert network.halo - network.stride < 48 - reached.min() <= network.halo
    assert network.halo - network.stride < reached.max() - 51 <= network.halo


def test_a_code_reaches_as_far_as_the_halo_says_and_no_further(tiny_vqgan):
    network = tiny_vqgan()
    codes = torch.randn(1, 8, 24, 2, 2, requires_grad=True)
    network.decode_codes(codes)[0, 0, 48:52].sum().backward()
    reached = codes.grad.abs().sum(dim=(0, 1, 3, 4)).nonzero().flatten()
    assert max(12 - reached.min(), reached.max() - 12) * network.stride <= network.halo


def test_decoding_the_indices_gives_the_reconstruction(tiny_vqgan):
    network, image = tiny_vqgan(), torch.rand(2, 1, 16, 20, 24) * 2 - 1
    with torch.no_grad():
        reconstruction = network.reconstruct(image)
        assert torch.equal(network.encode(image), reconstruction.indices)
        torch.testing.assert_close(network.decode(reconstruction.indices), network(image), rtol=0, atol=1e-6)


def test_the_generator_has_no_layer_with_statistics_over_space():
    with torch.device("meta"):
        network = build_vqgan()
    names = {type(module).__name__ for module in network.modules()}
    assert not [name for name in names if "Norm" in name or "Attention" in name]


def test_a_reconstruction_gives_gradients_to_encoder_and_decoder(tiny_vqgan):
    network = tiny_vqgan()
    network.reconstruct(torch.rand(1, 1, 16, 16, 16)).image.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "huge"}, "`preset` must be one of default, large, lite, got 'huge'"),
        ({"quantizer": "lfq"}, "`quantizer` must be"),
        ({"num_embeddings": 65537}, "`num_embeddings` must lie in 2..65536"),
    ],
)
def test_wrong_names_are_refused_with_the_rule(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_vqgan(**arguments)


@pytest.mark.parametrize("quantizer", ["ema", "fsq"])
def test_code_vectors_are_what_indices_become(quantizer):
    network = build_vqgan("lite", quantizer, 64)
    indices = torch.randint(0, 64, (2, 3, 2, 4))

    expected = network.quantizer.indices_to_codes(indices)
    torch.testing.assert_close(network.code_vectors()[indices].movedim(-1, 1), expected)


def test_voxels_are_not_rounded_to_bf16_under_autocast(tiny_vqgan):
    network = tiny_vqgan()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        image = network.decode_codes(torch.rand(1, 8, 8, 8, 8))

    assert image.dtype == torch.float32
    assert not torch.equal(image, image.bfloat16().float())


def test_a_network_that_is_copied_and_loaded_computes_in_the_same_order():
    """MONAI Label's stock app builds the network that way; half a HU must round to the same side."""
    placed = build_vqgan("lite", "fsq", 64)
    copied = copy.deepcopy(build_vqgan("lite", "fsq", 64)).to(torch.device("cpu"))
    copied.load_state_dict({name: tensor.contiguous() for name, tensor in placed.state_dict().items()})

    layouts = [{name: each.stride() for name, each in net.named_parameters()} for net in (placed, copied)]

    assert layouts[0] == layouts[1]
    assert any(
        layout != tensor.contiguous().stride()
        for layout, tensor in zip(layouts[0].values(), placed.parameters(), strict=True)
    )
