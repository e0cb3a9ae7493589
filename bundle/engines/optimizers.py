"""Builds optimizers and learning-rate schedules of generator and discriminators."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from bundle.distributed.collectives import average
from bundle.run.rules import check

ADAM_MOMENTS = 2  # values that Adam keeps of each weight


def build_optimizer(network: nn.Module, learning_rate: float) -> Optimizer | None:
    """Builds Adam with the betas (0.5, 0.9) usual in adversarial training; None for an empty network."""
    check(learning_rate=learning_rate)
    parameters = list(network.parameters())
    if not parameters:
        return None
    fused = all(parameter.is_cuda for parameter in parameters)
    return Adam(parameters, lr=learning_rate, betas=(0.5, 0.9), fused=fused)


class WarmupCosine(LambdaLR):
    """Raises the learning rate linearly from 0, then lowers it by a cosine to a share of it.

    Args:
        optimizer: whose learning rate is set.
        warmup_iterations: over which it rises.
        final_ratio: the share that is left at the end; 1.0 keeps the rate constant.

    Attributes:
        iterations: steps until the end. The update that owns the schedule takes them from its trainer.
    """

    def __init__(self, optimizer: Optimizer, warmup_iterations: int, final_ratio: float) -> None:
        check(learning_rate_warmup=warmup_iterations, learning_rate_final_ratio=final_ratio)
        self.iterations = 1
        self.warmup_iterations, self.final_ratio = warmup_iterations, final_ratio
        super().__init__(optimizer, self.factor)

    def factor(self, step: int) -> float:
        """Returns the share of the learning rate after so many steps."""
        warmup = min(1.0, (step + 1) / max(1, self.warmup_iterations))
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, self.iterations))))
        return warmup * (self.final_ratio + (1 - self.final_ratio) * cosine)


def build_schedule(
    optimizer: Optimizer | None, warmup_iterations: int, final_ratio: float
) -> WarmupCosine | None:
    """Builds the `WarmupCosine` of an optimizer; None where there is no optimizer."""
    return None if optimizer is None else WarmupCosine(optimizer, warmup_iterations, final_ratio)


class PendingStep:
    """A step whose gradients are complete; it is taken when the whole iteration has proved sound.

    `complete` comes first, so that the norm of the gradients is known before any weight moves.

    Args:
        name: of the network, for messages.
        optimizer: whose step it is.
        schedule: stepped with it.
        max_norm: the gradients are clipped to it (2-norm over all parameters; None = not).
        then: called after the step.

    Attributes:
        norm: of the gradients before clipping, a scalar on their device; known once they are complete.
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
        self.max_norm = math.inf if max_norm is None else max_norm
        self.norm = torch.full((), math.nan)

    def complete(self) -> None:
        """Turns the gradients into those of the whole batch, the means over all ranks, and clips them."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        average([parameter.grad for parameter in parameters if parameter.grad is not None])
        self.norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_norm)

    @property
    def bytes_of_weights(self) -> int:
        """Returns the size of all weights that the step moves."""
        groups = self.optimizer.param_groups
        return sum(weight.numel() * weight.element_size() for group in groups for weight in group["params"])

    def take(self) -> None:
        """Moves the weights."""
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        if self.then is not None:
            self.then()
