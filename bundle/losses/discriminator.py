"""Weighs and sums the discriminators' losses in their own step."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bundle.losses.adversarial import hinge_discriminator_loss
from bundle.losses.stabilisers import LeCamAnchors, r1_penalty
from bundle.losses.views import discriminator_views
from bundle.run.rules import check


@dataclass
class DiscriminatorFeatures:
    """What the discriminators gave for a micro-batch in the generator's step, kept for their own step.

    Their weights are the same in both steps, so one pass over images and one over reconstructions serve both.
    Each dictionary holds, by a discriminator's name, all feature maps of each view, logits last.

    Attributes:
        real: of the images; empty where the generator's losses do not need them.
        fake: of the reconstruction, with a graph that ends at a detached copy of it.
    """

    real: dict[str, list[list[Tensor]]] = field(default_factory=dict)
    fake: dict[str, list[list[Tensor]]] = field(default_factory=dict)


def features_of(discriminator: nn.Module, views: Sequence[Tensor], trains: bool) -> list[list[Tensor]]:
    """Runs a frozen discriminator.

    Args:
        discriminator: frozen before and after.
        views: of a volume, as it sees them.
        trains: whether its own step uses the result too, so that gradients must reach its weights.

    Returns:
        for each view all feature maps, logits last.
    """
    discriminator.requires_grad_(trains)
    try:
        return [discriminator(view) for view in views]
    finally:
        discriminator.requires_grad_(False)


class DiscriminatorObjective:
    """Sums the hinge losses of all discriminators, and the penalties that keep them from winning.

    A penalty belongs to its discriminator's own loss, so the discriminator's weight scales it too.

    Args:
        discriminators: `image` and `video` as `build_discriminators` gives them.
        weights: of their losses, by name.
        r1_gamma: gamma / 2 times the R1 penalty is added; 0 = off.
        lecam_weight: weight of LeCam regularisation; 0 = off.

    Attributes:
        TERM: the name of the loss's curve.
        anchors: LeCam's moving averages.
    """

    TERM = "disc_loss"

    def __init__(
        self,
        discriminators: nn.ModuleDict,
        weights: Mapping[str, float],
        r1_gamma: float = 0.0,
        lecam_weight: float = 0.0,
    ) -> None:
        check(r1_gamma=r1_gamma, lecam_weight=lecam_weight)
        self.discriminators, self.weights = discriminators, dict(weights)
        self.r1_gamma, self.lecam_weight = r1_gamma, lecam_weight
        self.anchors = LeCamAnchors()

    def __call__(
        self,
        names: Collection[str],
        image: Tensor,
        reconstruction: Tensor,
        positions: Tensor,
        share: float,
        kept: DiscriminatorFeatures | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns weighted hinge losses and weighted penalties of a micro-batch, two float32 scalars.

        Args:
            names: of the discriminators that take part.
            image: (b, 1, X, Y, Z) in [-1, 1].
            reconstruction: of the same shape, detached.
            positions: (b, 3) slice positions.
            share: of the micro-batch in its iteration, for LeCam's averages.
            kept: features of the generator's step; emptied here. R1 does not use those of the images, since
                it needs a pass of its own.
        """
        kept = DiscriminatorFeatures() if kept is None else kept
        loss = penalty = torch.zeros((), device=reconstruction.device)
        for name in names:
            discriminator = self.discriminators[name]
            real_views = discriminator_views(image, positions, name)
            weight, views = self.weights[name], len(real_views)
            real, fake = kept.real.pop(name, None), kept.fake.pop(name, None)
            if self.r1_gamma > 0:
                real_views = [view.detach().clone().requires_grad_(True) for view in real_views]
                real = None
            if real is None:
                real = [discriminator(view) for view in real_views]
            if fake is None:
                fake = [discriminator(view) for view in discriminator_views(reconstruction, positions, name)]
            for view, real_features, fake_features in zip(real_views, real, fake, strict=True):
                real_logits, fake_logits = real_features[-1], fake_features[-1]
                loss = loss + weight * hinge_discriminator_loss(real_logits, fake_logits) / views
                if self.r1_gamma > 0:
                    penalty = penalty + weight * self.r1_gamma / 2 * r1_penalty(view, real_logits) / views
                if self.lecam_weight > 0:
                    pull = self.anchors.penalty(name, real_logits, fake_logits)
                    penalty = penalty + weight * self.lecam_weight * pull / views
                    self.anchors.collect(name, real_logits, fake_logits, share / views)
        return loss, penalty
