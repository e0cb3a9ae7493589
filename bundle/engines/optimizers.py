"""Builds the optimizers of generator and discriminators, each with its learning-rate schedule."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from bundle.distributed.collectives import average
from bundle.run.rules import check

ADAM_MOMENTS = 2  # values that Adam keeps of each weight


class WarmupCosine(LambdaLR):
    """Raises the learning rate linearly from 0, then lowers it by a cosine to a share of it.

    Args:
        optimizer: whose learning rate is set.
        warmup_iterations: over which it rises.
        final_ratio: share of the rate that is left at the end; 1.0 keeps the rate constant.

    Attributes:
        iterations: steps until the end; the update that owns the optimizer sets them from its trainer.
    """

    def __init__(self, optimizer: Optimizer, warmup_iterations: int, final_ratio: float) -> None:
        self.iterations = 1
        self.warmup_iterations, self.final_ratio = warmup_iterations, final_ratio
        super().__init__(optimizer, self.factor)

    def factor(self, step: int) -> float:
        """Returns the share of the learning rate after `step` steps."""
        warmup = min(1.0, (step + 1) / max(1, self.warmup_iterations))
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, self.iterations))))
        return warmup * (self.final_ratio + (1 - self.final_ratio) * cosine)


class ScheduledAdam(Adam):
    """Adam with the betas (0.5, 0.9) usual in adversarial training, and with its learning-rate schedule.

    Args:
        parameters: to optimize.
        learning_rate: the highest one.
        warmup_iterations: see `WarmupCosine`.
        final_ratio: see `WarmupCosine`.

    Attributes:
        schedule: its `WarmupCosine`; a checkpoint keeps only its step.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rate: float,
        warmup_iterations: int = 0,
        final_ratio: float = 1.0,
    ) -> None:
        parameters = list(parameters)
        fused = all(parameter.is_cuda for parameter in parameters)
        super().__init__(parameters, lr=learning_rate, betas=(0.5, 0.9), fused=fused)
        self.schedule = WarmupCosine(self, warmup_iterations, final_ratio)

    @property
    def base_rates(self) -> list[float]:
        """Returns the highest learning rate of each group of parameters."""
        return [float(rate) for rate in self.schedule.base_lrs]

    def set_base_rates(self, rates: Sequence[float], step: int | None = None) -> None:
        """Sets the highest learning rate of each group, and the present ones that follow from it.

        Args:
            rates: one for each group of parameters.
            step: of the schedule from now on; None = the present one.
        """
        schedule = self.schedule
        schedule.base_lrs = list(rates)
        schedule.last_epoch = schedule.last_epoch if step is None else step
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate * schedule.factor(schedule.last_epoch)


def build_optimizer(
    network: nn.Module, learning_rate: float, warmup_iterations: int = 0, final_ratio: float = 1.0
) -> ScheduledAdam | None:
    """Builds the optimizer of a network; None for an empty network, such as no discriminators.

    Without `warmup_iterations` and `final_ratio` the learning rate is constant.
    """
    check(
        learning_rate=learning_rate,
        learning_rate_warmup=warmup_iterations,
        learning_rate_final_ratio=final_ratio,
    )
    parameters = list(network.parameters())
    return ScheduledAdam(parameters, learning_rate, warmup_iterations, final_ratio) if parameters else None


class PendingStep:
    """A step whose gradients are complete; it is taken when the whole iteration has proved sound.

    `complete` comes first, so that the norm of the gradients is known before any weight moves.

    Args:
        name: of the network, for messages.
        optimizer: whose step it is; its schedule is stepped with it.
        max_norm: the gradients are clipped to it (2-norm over all parameters; None = not).
        then: called after the step.

    Attributes:
        norm: of the gradients before clipping, a scalar on their device; known once they are complete.
    """

    def __init__(
        self,
        name: str,
        optimizer: ScheduledAdam,
        max_norm: float | None = None,
        then: Callable[[], None] | None = None,
    ) -> None:
        self.name, self.optimizer, self.then = name, optimizer, then
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
        self.optimizer.schedule.step()
        if self.then is not None:
            self.then()
