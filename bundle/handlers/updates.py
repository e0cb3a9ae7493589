"""Updates generator and discriminators, as two separate handlers; the gate opens the second."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bundle.engines.events import AdversarialEvents, MicroBatch
from bundle.engines.optimizers import PendingStep, WarmupCosine
from bundle.engines.trainer import AdversarialTrainer
from bundle.handlers.gate import IterationGate
from bundle.losses.adversarial import hinge_discriminator_loss
from bundle.losses.stabilisers import LeCamAnchors, r1_penalty
from bundle.losses.views import discriminator_views
from bundle.networks.discriminators import refine_estimates
from bundle.run.rules import check


class GeneratorUpdate:
    """Runs the generator's objective backward per micro-batch and hands over one step per iteration.

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
        schedule: WarmupCosine | None = None,
        gradient_clip: float | None = None,
    ) -> None:
        check(gradient_clip=gradient_clip)
        self.optimizer = optimizer
        self.objective = objective
        self.gate = gate
        self.schedule = schedule
        self.gradient_clip = gradient_clip

    def attach(self, engine: AdversarialTrainer) -> None:
        """Joins the engine at `GENERATOR_STEP`."""
        if self.schedule is not None:
            self.schedule.iterations = engine.total_iterations
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
            )
        (total * micro.share).backward()
        engine.add_losses({"loss": total, **terms})
        if micro.is_last:
            engine.add_step(PendingStep("generator", self.optimizer, self.schedule, self.gradient_clip))


class DiscriminatorUpdate:
    """Trains the discriminators by the hinge loss on the generator's reconstruction, detached.

    The two penalties belong to each discriminator's own loss, so its weight scales them too; they are not
    part of the curve `disc_loss`.

    Args:
        optimizer: of the discriminators.
        discriminators: `image` and `video` as `build_discriminators` gives them.
        image_gan_weight: weight of the slice discriminator's loss.
        video_gan_weight: weight of the volume discriminator's loss.
        gate: from which iteration on they train; below it this handler is not called.
        schedule: learning-rate schedule, stepped with the optimizer.
        gradient_clip: largest 2-norm of the gradient; None = not clipped.
        r1_gamma: gamma / 2 times the R1 penalty is added; 0 = off.
        lecam_weight: weight of LeCam regularisation; 0 = off.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        discriminators: nn.ModuleDict,
        image_gan_weight: float,
        video_gan_weight: float,
        gate: IterationGate,
        schedule: WarmupCosine | None = None,
        gradient_clip: float | None = None,
        r1_gamma: float = 0.0,
        lecam_weight: float = 0.0,
    ) -> None:
        check(gradient_clip=gradient_clip, r1_gamma=r1_gamma, lecam_weight=lecam_weight)
        self.optimizer = optimizer
        self.discriminators = discriminators
        self.weights = {"image": image_gan_weight, "video": video_gan_weight}
        self.gate = gate
        self.schedule = schedule
        self.gradient_clip = gradient_clip
        self.r1_gamma = r1_gamma
        self.lecam_weight = lecam_weight
        self.lecam = LeCamAnchors()  # in checkpoints also while its weight is 0

    def attach(self, engine: AdversarialTrainer) -> None:
        """Joins the engine at `DISCRIMINATOR_STEP`, through the gate."""
        if self.schedule is not None:
            self.schedule.iterations = engine.total_iterations - self.gate.start
        self.lecam.to(engine.state.device)
        engine.keep("lecam", self.lecam)
        engine.add_event_handler(AdversarialEvents.DISCRIMINATOR_STEP(event_filter=self.gate), self)

    def __call__(self, engine: AdversarialTrainer) -> None:
        """Works on one micro-batch."""
        micro = engine.micro_batch
        names = [name for name in self.discriminators if name not in engine.memory_fallback.switched_off]
        if micro.is_first:
            self.optimizer.zero_grad(set_to_none=True)
            if self.lecam_weight > 0:
                self.lecam.start()
        if not names:
            return
        self.discriminators.requires_grad_(True)
        try:
            with engine.autocast():
                loss, penalty = self.losses(micro, names)
            ((loss + penalty) * micro.share).backward()
        finally:
            self.discriminators.requires_grad_(False)
        engine.add_losses({"disc_loss": loss})
        if micro.is_last:
            engine.add_step(
                PendingStep(
                    "discriminators", self.optimizer, self.schedule, self.gradient_clip, self._after_step
                )
            )

    def losses(self, micro: MicroBatch, names: list[str]) -> tuple[Tensor, Tensor]:
        """Returns weighted hinge losses and penalties of a micro-batch, summed over the discriminators."""
        reconstruction = micro.reconstruction.image.detach()
        loss = penalty = torch.zeros((), device=reconstruction.device)
        for name in names:
            real_views = discriminator_views(micro.image, micro.positions, name)
            fake_views = discriminator_views(reconstruction, micro.positions, name)
            weight, views = self.weights[name], len(real_views)
            for real, fake in zip(real_views, fake_views, strict=True):
                if self.r1_gamma > 0:
                    real = real.detach().clone().requires_grad_(True)
                real_logits = self.discriminators[name](real)[-1]
                fake_logits = self.discriminators[name](fake)[-1]
                loss = loss + weight * hinge_discriminator_loss(real_logits, fake_logits) / views
                if self.r1_gamma > 0:
                    penalty = penalty + weight * self.r1_gamma / 2 * r1_penalty(real, real_logits) / views
                if self.lecam_weight > 0:
                    pull = self.lecam.penalty(name, real_logits, fake_logits)
                    penalty = penalty + weight * self.lecam_weight * pull / views
                    self.lecam.collect(name, real_logits, fake_logits, micro.share / views)
        return loss, penalty

    def _after_step(self) -> None:
        refine_estimates(self.discriminators)
        if self.lecam_weight > 0:
            self.lecam.update()
