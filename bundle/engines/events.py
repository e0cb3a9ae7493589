"""The events of one adversarial iteration and what they work on."""

from dataclasses import dataclass

from ignite.engine import EventEnum
from torch import Tensor

from bundle.networks.vqgan import Reconstruction


class AdversarialEvents(EventEnum):
    """Of one iteration, in this order.

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
    """

    image: Tensor
    reconstruction: Reconstruction
    positions: Tensor
    share: float
    is_first: bool
    is_last: bool
