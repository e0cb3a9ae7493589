"""The discriminators' update, as a handler behind the gate."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from bundle.engines.events import AdversarialEvents, MicroBatch
from bundle.engines.optimizers import step_optimizer
from bundle.engines.trainer import AdversarialTrainer
from bundle.handlers.iteration_gate import IterationGate
from bundle.losses.adversarial import hinge_discriminator_loss
from bundle.losses.views import discriminator_views


class DiscriminatorUpdate:
    """Hinge step of the discriminators on the detached reconstruction of the generator's own forward pass.

    Args:
        optimizer: of the discriminators.
        discriminators: `image` and `video` as `build_discriminators` gives them.
        image_gan_weight: weight of the slice discriminator's loss.
        video_gan_weight: weight of the volume discriminator's loss.
        gate: from which iteration on they train; below it this handler is not called.
        schedule: learning-rate schedule, stepped with the optimizer.
        gradient_clip: largest 2-norm of the gradient; None = not clipped.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        discriminators: nn.ModuleDict,
        image_gan_weight: float,
        video_gan_weight: float,
        gate: IterationGate,
        schedule: LambdaLR | None = None,
        gradient_clip: float | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.discriminators = discriminators
        self.weights = {"image": image_gan_weight, "video": video_gan_weight}
        self.gate = gate
        self.schedule = schedule
        self.gradient_clip = gradient_clip

    def attach(self, engine: AdversarialTrainer) -> None:
        """Joins the engine at `DISCRIMINATOR_STEP`, through the gate."""
        engine.add_event_handler(AdversarialEvents.DISCRIMINATOR_STEP(event_filter=self.gate), self)

    def __call__(self, engine: AdversarialTrainer) -> None:
        """One micro-batch."""
        micro = engine.state.micro_batch
        self.discriminators.requires_grad_(True)
        if micro.is_first:
            self.optimizer.zero_grad(set_to_none=True)
        with engine.autocast():
            loss = self._loss(micro)
        (loss * micro.share).backward()
        engine.add_losses({"disc_loss": loss})
        if micro.is_last:
            step_optimizer(self.optimizer, self.schedule, self.gradient_clip)
        self.discriminators.requires_grad_(False)

    def _loss(self, micro: MicroBatch) -> Tensor:
        reconstruction = micro.reconstruction.image.detach()
        loss = torch.zeros((), device=reconstruction.device)
        for name, discriminator in self.discriminators.items():
            real_views = discriminator_views(micro.image, micro.positions, name)
            fake_views = discriminator_views(reconstruction, micro.positions, name)
            for real, fake in zip(real_views, fake_views, strict=True):
                hinge = hinge_discriminator_loss(discriminator(real)[-1], discriminator(fake)[-1])
                loss = loss + self.weights[name] * hinge / len(real_views)
        return loss
