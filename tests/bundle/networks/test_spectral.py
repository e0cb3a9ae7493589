"""Every convolution of a normalised discriminator has the largest singular value 1."""

import torch
from torch import nn

from bundle.networks.discriminators import add_spectral_norm, build_discriminators, refine_estimates


def largest_singular_value(weight):
    return torch.linalg.matrix_norm(weight.flatten(1), ord=2)


def converged(network, steps=60):
    for _ in range(steps):
        refine_estimates(network)
    return network


def test_a_weight_is_divided_by_its_largest_singular_value_and_so_is_its_gradient():
    convolution = nn.Conv2d(3, 5, 3, bias=False)
    original = convolution.weight.detach().clone().requires_grad_(True)
    converged(add_spectral_norm(convolution))
    probe = torch.randn(5, 3, 3, 3)

    (original / largest_singular_value(original) * probe).sum().backward()
    (convolution.weight * probe).sum().backward()

    torch.testing.assert_close(convolution.weight, original / largest_singular_value(original))
    torch.testing.assert_close(
        convolution.parametrizations.weight.original.grad, original.grad, rtol=1e-3, atol=1e-4
    )


def test_all_convolutions_of_both_discriminators_are_normalised_and_keep_their_number_of_parameters():
    plain, normalised = build_discriminators(1.0, 0.5), build_discriminators(1.0, 0.5, spectral_norm=True)

    sizes = [sum(p.numel() for p in network.parameters()) for network in (plain, normalised)]
    assert sizes[0] == sizes[1] == 2_763_585 + 11_048_769
    convolutions = [m for m in normalised["image"].modules() if isinstance(m, nn.Conv2d)]
    converged(normalised["image"], steps=15)
    assert len(convolutions) == 5
    for convolution in convolutions:
        assert 0.9 < largest_singular_value(convolution.weight) < 1.1


def test_passes_do_not_move_the_estimate_and_a_refinement_does():
    network = add_spectral_norm(nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 2, 3)))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network(torch.randn(1, 2, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())

    with torch.no_grad():
        network[0].parametrizations.weight.original.copy_(torch.randn(4, 2, 3, 3))
    refine_estimates(network)
    moved = [name for name, value in network.state_dict().items() if not torch.equal(value, before[name])]
    assert any(name.endswith("_u") for name in moved)
    assert not network[0].training
