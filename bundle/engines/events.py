"""The events of one adversarial iteration, and the state that its handlers share."""

from __future__ import annotations

from dataclasses import dataclass, field

from ignite.engine import EventEnum
from torch import Tensor

from bundle.engines.optimizers import PendingStep
from bundle.losses.discriminator import DiscriminatorFeatures
from bundle.networks.vqgan import Reconstruction


class AdversarialEvents(EventEnum):
    """The events of one iteration, in their order.

    The first two are fired once per micro-batch, after the generator's forward pass; the last once, when all
    gradients are complete and before any weight or code moves.
    """

    GENERATOR_STEP = "generator_step"
    DISCRIMINATOR_STEP = "discriminator_step"
    GRADIENTS_COMPLETED = "gradients_completed"


# ignite asks for the event's number when a handler is attached through an event filter
EVENT_TO_ATTR = {event: "iteration" for event in AdversarialEvents}


@dataclass(frozen=True)
class MicroBatch:
    """A share of the batch with the one reconstruction that both updates work on.

    Attributes:
        image: (b, 1, X, Y, Z) in [-1, 1].
        reconstruction: the generator's, with its graph.
        positions: (b, 3) slice positions.
        share: b / B, the weight of this micro-batch's mean losses in the iteration's.
        is_first: the first of the iteration: gradients start from zero.
        is_last: the last of the iteration: gradients are complete.
        kept: features of the discriminators, kept from the generator's step for their own.
    """

    image: Tensor
    reconstruction: Reconstruction
    positions: Tensor
    share: float
    is_first: bool
    is_last: bool
    kept: DiscriminatorFeatures = field(default_factory=DiscriminatorFeatures)


@dataclass
class IterationState:
    """What the handlers of one iteration have gathered so far; `AdversarialTrainer.current` holds it.

    Every attempt at an iteration starts with an empty one, so that an attempt that did not fit into memory
    leaves nothing behind.

    Attributes:
        losses: mean losses of the batch by name, detached scalars; empty after a skipped iteration.
        steps: optimizer steps whose gradients are complete; they are taken together at the end.
        micro_batch: the share of the batch that the update events work on; None between them.
        skip_steps: a handler sets it to keep all weights and codes as they are.
    """

    losses: dict[str, Tensor] = field(default_factory=dict)
    steps: list[PendingStep] = field(default_factory=list)
    micro_batch: MicroBatch | None = None
    skip_steps: bool = False
