import math

import pytest
import torch
from torch import nn

from bundle.engines.optimizers import PendingStep, ScheduledAdam, build_optimizer


def rates(total, warmup, final_ratio, steps):
    """Learning rate, in units of the base rate, of each of `steps` iterations."""
    network = nn.Linear(1, 1)
    optimizer = build_optimizer(network, 0.5, warmup, final_ratio)
    optimizer.schedule.iterations = total
    used = []
    for _ in range(steps):
        network(torch.ones(1, 1)).sum().backward()
        used.append(optimizer.param_groups[0]["lr"] / 0.5)
        PendingStep("generator", optimizer).take()
    return used


def test_the_warm_up_is_linear_and_its_last_iteration_has_the_full_rate():
    assert rates(1000, 4, 1.0, 6) == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])


def test_the_cosine_is_halfway_down_in_the_middle_and_at_its_end_when_the_run_ends():
    used = rates(20, 0, 0.1, 25)
    assert used[0] == 1.0
    assert used[5] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert used[10] == pytest.approx(0.55)
    assert used[20:] == pytest.approx([0.1] * 5)


def test_warm_up_and_cosine_multiply():
    assert rates(10, 10, 0.0, 6)[5] == pytest.approx(0.6 * 0.5)


def test_a_final_ratio_of_one_without_warm_up_is_constant():
    assert rates(10, 0, 1.0, 12) == [1.0] * 12


def test_an_empty_network_has_no_optimizer():
    assert build_optimizer(nn.ModuleDict(), 1.0) is None


@pytest.mark.parametrize(("max_norm", "expected"), [(None, 5.0), (10.0, 5.0), (1.0, 1.0)])
def test_gradients_are_clipped_by_their_common_norm(max_norm, expected):
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    first.grad, second.grad = torch.tensor([3.0]), torch.tensor([4.0])
    step = PendingStep("generator", ScheduledAdam([first, second], 1.0), max_norm)
    step.complete()
    clipped = torch.cat([first.grad, second.grad])
    torch.testing.assert_close(clipped, expected * torch.tensor([0.6, 0.8]), rtol=1e-4, atol=0)
    assert step.norm == 5.0
