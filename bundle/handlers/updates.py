"""Updates generator and discriminators, as two separate handlers; the gate opens the second."""

from bundle.engines.events import AdversarialEvents
from bundle.engines.optimizers import PendingStep, ScheduledAdam
from bundle.engines.trainer import AdversarialTrainer
from bundle.handlers.gate import IterationGate
from bundle.losses.discriminator import DiscriminatorObjective
from bundle.losses.objective import GeneratorObjective
from bundle.networks.discriminators import refine_estimates
from bundle.run.rules import check


class GeneratorUpdate:
    """Runs the generator's objective backward per micro-batch and hands over one step per iteration.

    The discriminators get no gradient here. Behind the gate their features are kept, with the graph, for
    their own step (`micro.kept`).

    Args:
        optimizer: of the generator, with its learning-rate schedule.
        objective: `GeneratorObjective`.
        gate: opens the adversarial, feature-matching and perceptual terms.
        gradient_clip: largest 2-norm of the gradient; None = not clipped.
    """

    def __init__(
        self,
        optimizer: ScheduledAdam,
        objective: GeneratorObjective,
        gate: IterationGate,
        gradient_clip: float | None = None,
    ) -> None:
        check(gradient_clip=gradient_clip)
        self.optimizer = optimizer
        self.objective = objective
        self.gate = gate
        self.gradient_clip = gradient_clip

    def attach(self, engine: AdversarialTrainer) -> None:
        """Joins the engine at `GENERATOR_STEP`."""
        self.optimizer.schedule.iterations = engine.total_iterations
        engine.add_event_handler(AdversarialEvents.GENERATOR_STEP, self)

    def __call__(self, engine: AdversarialTrainer) -> None:
        """Works on one micro-batch."""
        micro = engine.micro_batch
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
                kept=micro.kept,
            )
        (total * micro.share).backward()
        engine.add_losses({"loss": total, **terms})
        if micro.is_last:
            engine.add_step(PendingStep("generator", self.optimizer, self.gradient_clip))


class DiscriminatorUpdate:
    """Trains the discriminators by the hinge loss on the generator's reconstruction, detached.

    Penalties are not part of the curve `disc_loss`.

    Args:
        optimizer: of the discriminators, with its learning-rate schedule.
        objective: the generator's, which has the discriminators and their weights.
        gate: from which iteration on they train; below it this handler is not called.
        gradient_clip: largest 2-norm of the gradient; None = not clipped.
        r1_gamma: see `DiscriminatorObjective`.
        lecam_weight: see `DiscriminatorObjective`; checkpoints hold its averages.
    """

    def __init__(
        self,
        optimizer: ScheduledAdam,
        objective: GeneratorObjective,
        gate: IterationGate,
        gradient_clip: float | None = None,
        r1_gamma: float = 0.0,
        lecam_weight: float = 0.0,
    ) -> None:
        check(gradient_clip=gradient_clip)
        self.optimizer = optimizer
        self.discriminators = objective.discriminators
        self.objective = DiscriminatorObjective(
            objective.discriminators, objective.gan_weights, r1_gamma, lecam_weight
        )
        self.gate = gate
        self.gradient_clip = gradient_clip

    def attach(self, engine: AdversarialTrainer) -> None:
        """Joins the engine at `DISCRIMINATOR_STEP`, through the gate."""
        self.optimizer.schedule.iterations = engine.total_iterations - self.gate.start
        engine.keep("lecam", self.objective.anchors.to(engine.state.device))
        engine.add_event_handler(AdversarialEvents.DISCRIMINATOR_STEP(event_filter=self.gate), self)

    def __call__(self, engine: AdversarialTrainer) -> None:
        """Works on one micro-batch."""
        micro = engine.micro_batch
        names = [name for name in self.discriminators if name not in engine.memory_fallback.switched_off]
        if micro.is_first:
            self.optimizer.zero_grad(set_to_none=True)
            self.objective.anchors.start()
        if not names:
            return
        fake = micro.reconstruction.image.detach()
        weights = [weight for name in names for weight in self.discriminators[name].parameters()]
        self.discriminators.requires_grad_(True)
        try:
            with engine.autocast():
                loss, penalty = self.objective(
                    names, micro.image, fake, micro.positions, micro.share, micro.kept
                )
            ((loss + penalty) * micro.share).backward(inputs=weights)
        finally:
            self.discriminators.requires_grad_(False)
        engine.add_losses({self.objective.TERM: loss})
        if micro.is_last:
            engine.add_step(
                PendingStep("discriminators", self.optimizer, self.gradient_clip, self._after_step)
            )

    def _after_step(self) -> None:
        refine_estimates(self.discriminators)
        self.objective.anchors.update()
