"""Optimizers and learning-rate schedule of both sides."""

import math

import torch
from torch import nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR


def build_optimizer(network: nn.Module, learning_rate: float) -> Optimizer | None:
    """Adam with the betas (0.5, 0.9) usual in adversarial training; None for an empty network."""
    parameters = list(network.parameters())
    if not parameters:
        return None
    fused = all(parameter.is_cuda for parameter in parameters)
    return Adam(parameters, lr=learning_rate, betas=(0.5, 0.9), fused=fused)


def build_schedule(
    optimizer: Optimizer | None, total_iterations: int, warmup_iterations: int, final_ratio: float
) -> LambdaLR | None:
    """Linear warm-up, then a cosine down to `final_ratio` of the learning rate at `total_iterations`.

    Args:
        optimizer: None gives None.
        total_iterations: of the run.
        warmup_iterations: over which the learning rate rises from 0.
        final_ratio: 1.0 keeps it constant.
    """
    if optimizer is None:
        return None

    def factor(step: int) -> float:
        warmup = min(1.0, (step + 1) / max(1, warmup_iterations))
        progress = min(1.0, step / max(1, total_iterations))
        return warmup * (final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))

    return LambdaLR(optimizer, factor)


def step_optimizer(optimizer: Optimizer, schedule: LambdaLR | None, max_norm: float | None) -> None:
    """Clips the gradients to `max_norm` (2-norm over all parameters; None = not), then steps both."""
    if max_norm is not None:
        torch.nn.utils.clip_grad_norm_(
            [parameter for group in optimizer.param_groups for parameter in group["params"]], max_norm
        )
    optimizer.step()
    if schedule is not None:
        schedule.step()
