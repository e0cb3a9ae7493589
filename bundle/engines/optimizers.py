"""Builds optimizers and learning-rate schedules of generator and discriminators."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from bundle.run.rules import check


def build_optimizer(network: nn.Module, learning_rate: float) -> Optimizer | None:
    """Builds Adam with the betas (0.5, 0.9) usual in adversarial training; None for an empty network."""
    check(learning_rate=learning_rate)
    parameters = list(network.parameters())
    if not parameters:
        return None
    fused = all(parameter.is_cuda for parameter in parameters)
    return Adam(parameters, lr=learning_rate, betas=(0.5, 0.9), fused=fused)


def build_schedule(
    optimizer: Optimizer | None, total_iterations: int, warmup_iterations: int, final_ratio: float
) -> LambdaLR | None:
    """Builds a linear warm-up, then a cosine to `final_ratio` of the learning rate at `total_iterations`.

    Args:
        optimizer: None gives None.
        total_iterations: of the run.
        warmup_iterations: over which the learning rate rises from 0.
        final_ratio: 1.0 keeps it constant.
    """
    check(learning_rate_warmup=warmup_iterations, learning_rate_final_ratio=final_ratio)
    if optimizer is None:
        return None

    def factor(step: int) -> float:
        warmup = min(1.0, (step + 1) / max(1, warmup_iterations))
        progress = min(1.0, step / max(1, total_iterations))
        return warmup * (final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))

    return LambdaLR(optimizer, factor)


class PendingStep:
    """A step whose gradients are complete; it is taken when the whole iteration has proved sound.

    Gradients are clipped when this is made, so that their norm is known before any weight moves.

    Args:
        name: of the network, for messages.
        optimizer: whose step it is.
        schedule: stepped with it.
        max_norm: the gradients are clipped to it (2-norm over all parameters; None = not).
        then: called after the step.

    Attributes:
        norm: of the gradients before clipping, a scalar on their device.
    """

    def __init__(
        self,
        name: str,
        optimizer: Optimizer,
        schedule: LambdaLR | None = None,
        max_norm: float | None = None,
        then: Callable[[], None] | None = None,
    ) -> None:
        self.name, self.optimizer, self.schedule, self.then = name, optimizer, schedule, then
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf if max_norm is None else max_norm)

    def take(self) -> None:
        """Moves the weights."""
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        if self.then is not None:
            self.then()
