"""The generator's update, as a handler."""

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from bundle.engines.events import AdversarialEvents
from bundle.engines.optimizers import PendingStep
from bundle.engines.trainer import AdversarialTrainer
from bundle.handlers.iteration_gate import IterationGate


class GeneratorUpdate:
    """Backward pass of the generator's objective per micro-batch; hands over one step per iteration.

    The discriminators are frozen in it (see `build_discriminators`): gradients pass through them to the
    reconstruction, none is left in them.

    Args:
        optimizer: of the generator.
        objective: `GeneratorObjective`.
        gate: opens the adversarial, feature-matching and perceptual terms.
        schedule: learning-rate schedule, stepped with the optimizer.
        gradient_clip: largest 2-norm of the gradient; None = not clipped.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        objective: nn.Module,
        gate: IterationGate,
        schedule: LambdaLR | None = None,
        gradient_clip: float | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.objective = objective
        self.gate = gate
        self.schedule = schedule
        self.gradient_clip = gradient_clip

    def attach(self, engine: AdversarialTrainer) -> None:
        """Joins the engine at `GENERATOR_STEP`."""
        engine.add_event_handler(AdversarialEvents.GENERATOR_STEP, self)

    def __call__(self, engine: AdversarialTrainer) -> None:
        """One micro-batch."""
        micro = engine.state.micro_batch
        if micro.is_first:
            self.optimizer.zero_grad(set_to_none=True)
        share_open = self.gate.generator_share(engine.state.iteration)
        with engine.autocast():
            total, terms = self.objective(
                micro.image,
                micro.reconstruction,
                micro.positions,
                share_open,
                without=engine.memory_fallback.switched_off,
            )
        (total * micro.share).backward()
        engine.add_losses({"loss": total, **terms})
        if micro.is_last:
            engine.add_step(PendingStep("generator", self.optimizer, self.schedule, self.gradient_clip))
