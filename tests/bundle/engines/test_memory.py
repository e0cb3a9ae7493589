"""The estimate of memory: it counts what is alive, allocates nothing, and grows as training does."""

import pytest
import torch
from torch import nn

from bundle.engines.memory import LiveBytes, estimate_training_memory, memory_table
from bundle.losses.objective import GeneratorObjective
from bundle.networks.discriminators import build_discriminators

MIB = 2**20


def sizes(network, objective, side=32, micro=1, batch=2, **settings):
    rows = estimate_training_memory(network, objective, (side,) * 3, micro, batch, **settings)
    return {row.what: row.size for row in rows}


def adversarial(image=1.0, video=0.0):
    return GeneratorObjective(1.0, 0.25, 0.0, image, video, 4.0, build_discriminators(image, video))


def test_what_is_alive_is_counted_once_and_what_is_freed_no_more():
    with LiveBytes() as counter:
        first = torch.empty(MIB, device="meta")  # 4 MiB
        view = first.view(2, -1)[0]
        second = torch.empty(MIB, device="meta")
        del second
        third = torch.empty(MIB // 4, device="meta")
    assert counter.peak == 8 * MIB
    assert view.numel() + third.numel() > 0


def test_the_activations_of_a_chain_are_those_that_its_derivative_needs():
    chain = nn.Sequential(*[nn.Conv3d(1, 1, 1, bias=False, device="meta") for _ in range(5)])
    image = torch.empty(1, 1, 64, 64, 64, device="meta")  # 1 MiB
    with LiveBytes() as counter:
        result = chain(image)
    assert counter.peak == 5 * MIB
    assert result.shape == image.shape


def test_weights_gradients_and_moments_are_four_times_the_weights_and_behind_the_gate_only(tiny_vqgan):
    network, objective = tiny_vqgan(), adversarial()
    told = sizes(network, objective)
    parameters = sum(p.numel() for p in network.parameters())
    buffers = sum(b.numel() * b.element_size() for b in network.buffers())

    assert told["generator: weights, gradients, Adam"] == 16 * parameters + buffers
    assert told["discriminators: weights, gradients, Adam"] == 16 * 2_763_585
    below = sizes(network, objective, gated=False)
    assert below["discriminators: weights, gradients, Adam"] == 4 * 2_763_585
    assert below["activations at their peak"] < told["activations at their peak"]


def test_activations_grow_with_patch_and_micro_batch_and_not_with_the_batch(tiny_vqgan):
    network, objective = tiny_vqgan(), GeneratorObjective(1.0, 0.25)
    name = "activations at their peak"
    small = sizes(network, objective)[name]

    assert sizes(network, objective, micro=2)[name] == pytest.approx(2 * small, rel=0.05)
    assert sizes(network, objective, side=64)[name] == pytest.approx(8 * small, rel=0.1)
    assert sizes(network, objective, batch=8)[name] == small
    half = sizes(network, objective, half_precision=True)[name]
    assert 0.5 * small < half < 0.75 * small  # losses stay in float32


def test_the_volume_discriminator_and_r1_cost_memory(tiny_vqgan):
    network, name = tiny_vqgan(), "activations at their peak"
    plain = sizes(network, adversarial())[name]
    assert sizes(network, adversarial(1.0, 0.5))[name] > plain
    assert sizes(network, adversarial(), r1_gamma=10.0)[name] > plain


def test_the_networks_are_left_as_they_are(tiny_vqgan):
    network, objective = tiny_vqgan(), adversarial()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    sizes(network, objective)

    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in objective.parameters())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


def test_the_table_ends_with_the_sum(tiny_vqgan):
    rows = estimate_training_memory(tiny_vqgan(), adversarial(), (32, 32, 32), 1, 1)
    lines = memory_table(rows).splitlines()

    assert len(lines) == len(rows) + 1
    assert lines[-1].split() == [
        *"sum: peak of an iteration".split(),
        f"{sum(r.size for r in rows) / MIB:,.0f}",
        "MiB",
    ]
