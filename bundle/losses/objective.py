"""Weighs and sums the generator's losses."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from bundle.losses.adversarial import hinge_generator_loss
from bundle.losses.discriminator import DiscriminatorFeatures, features_of
from bundle.losses.feature_matching import feature_matching_loss
from bundle.losses.views import discriminator_views, take_slices
from bundle.networks.vqgan import Reconstruction
from bundle.run.rules import check


class GeneratorObjective(nn.Module):
    """Sums L1 and commitment and, behind the gate, LPIPS, adversarial and feature-matching terms.

    A term of weight 0 is not computed, and the network behind it is not needed.

    Args:
        l1_weight: weight of the mean absolute difference in [-1, 1] (1.0 is 1000 HU in a 2000 HU window).
        commitment_weight: weight of the commitment loss.
        perceptual_weight: weight of LPIPS, mean over slices.
        image_gan_weight: weight of the slice discriminator's hinge term.
        video_gan_weight: weight of the volume discriminator's hinge term.
        gan_feat_weight: weight of feature matching, summed over the discriminators that exist.
        discriminators: `image` and `video` as `build_discriminators` gives them.
        perceptual: distance per slice on (N, 1, H, W) pairs; None where `perceptual_weight` is 0.
        loss_margin: voxels at each face of a patch that the L1 term leaves out.

    Attributes:
        TERMS: names of the terms, which are those of their curves.
    """

    TERMS = ("recon_loss", "commitment_loss", "perceptual_loss", "gen_loss", "gan_feat_loss")

    def __init__(
        self,
        l1_weight: float,
        commitment_weight: float,
        perceptual_weight: float = 0.0,
        image_gan_weight: float = 0.0,
        video_gan_weight: float = 0.0,
        gan_feat_weight: float = 0.0,
        discriminators: nn.ModuleDict | None = None,
        perceptual: nn.Module | None = None,
        loss_margin: int = 0,
    ) -> None:
        super().__init__()
        check(
            l1_weight=l1_weight,
            commitment_weight=commitment_weight,
            perceptual_weight=perceptual_weight,
            image_gan_weight=image_gan_weight,
            video_gan_weight=video_gan_weight,
            gan_feat_weight=gan_feat_weight,
            loss_margin=loss_margin,
        )
        self.l1_weight, self.commitment_weight = l1_weight, commitment_weight
        self.perceptual_weight, self.gan_feat_weight = perceptual_weight, gan_feat_weight
        self.gan_weights = {"image": image_gan_weight, "video": video_gan_weight}
        self.discriminators = nn.ModuleDict() if discriminators is None else discriminators
        self.perceptual = perceptual
        self.loss_margin = loss_margin
        if perceptual_weight > 0 and perceptual is None:
            raise ValueError(
                f"`perceptual` must be given with `perceptual_weight` {perceptual_weight}, got None"
            )

    def forward(
        self,
        image: Tensor,
        reconstruction: Reconstruction,
        positions: Tensor,
        gate: float,
        without: Collection[str] = (),
        kept: DiscriminatorFeatures | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the total loss and its terms by the names of their curves.

        Args:
            image: (B, 1, X, Y, Z) in [-1, 1].
            reconstruction: of the same shape, with its commitment loss.
            positions: (B, 3) slice positions.
            gate: 0 below the gate; above it the share, up to 1, of adversarial and feature-matching terms.
            without: `video` or `perceptual`: terms to leave out as if their weights were 0.
            kept: filled with the discriminators' features, for their own step on the same micro-batch; None
                if no such step follows.
        """
        terms = {
            "recon_loss": self._l1(image, reconstruction.image),
            "commitment_loss": reconstruction.commitment_loss,
        }
        total = self.l1_weight * terms["recon_loss"] + self.commitment_weight * terms["commitment_loss"]
        perceptual_weight = 0.0 if "perceptual" in without else self.perceptual_weight
        if gate > 0 and self.perceptual is not None and perceptual_weight > 0:
            terms["perceptual_loss"] = _slice_distance(
                self.perceptual, image, reconstruction.image, positions
            )
            total = total + perceptual_weight * terms["perceptual_loss"]
        names = [name for name in self.discriminators if name not in without]
        if gate > 0 and names:
            added, adversarial = self._adversarial(names, image, reconstruction.image, positions, gate, kept)
            total = total + added
            terms |= adversarial
        return total, {name: term.detach() for name, term in terms.items()}

    def _l1(self, image: Tensor, reconstruction: Tensor) -> Tensor:
        margin = self.loss_margin
        x, y, z = (slice(margin, size - margin) for size in image.shape[2:])
        return (image[..., x, y, z].float() - reconstruction[..., x, y, z].float()).abs().mean()

    def _adversarial(
        self,
        names: Collection[str],
        image: Tensor,
        reconstruction: Tensor,
        positions: Tensor,
        gate: float,
        kept: DiscriminatorFeatures | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns what to add to the total, and its terms summed over the discriminators."""
        trains = kept is not None
        kept = DiscriminatorFeatures() if kept is None else kept
        seen = reconstruction.detach().requires_grad_() if trains else reconstruction
        hinge = matching = torch.zeros((), device=image.device)
        for name in names:
            discriminator, weight = self.discriminators[name], self.gan_weights[name]
            views = discriminator_views(seen, positions, name)
            kept.fake[name] = fakes = features_of(discriminator, views, trains)
            for fake in fakes:
                hinge = hinge + weight * hinge_generator_loss(fake[-1]) / len(views)
            if self.gan_feat_weight > 0:
                views = discriminator_views(image, positions, name)
                kept.real[name] = reals = features_of(discriminator, views, trains)
                for real, fake in zip(reals, fakes, strict=True):
                    matching = matching + feature_matching_loss(real, fake) / len(views)
        added, terms = gate * hinge, {"gen_loss": hinge}
        if self.gan_feat_weight > 0:
            added, terms["gan_feat_loss"] = added + gate * self.gan_feat_weight * matching, matching
        return (_leading_to(reconstruction, added, seen) if trains else added), terms


def _leading_to(tensor: Tensor, loss: Tensor, copy: Tensor) -> Tensor:
    """Turns a loss of a detached copy of a tensor into a loss of the tensor.

    The graph between copy and loss remains for a second backward pass. Weights in it get no gradient here.
    """
    (gradient,) = torch.autograd.grad(loss, copy, retain_graph=True)
    return _WithGradient.apply(tensor, loss.detach(), gradient)


class _WithGradient(torch.autograd.Function):
    """A value that depends on a tensor by a gradient which is already known."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return outer[0] * gradient, None, None


def _slice_distance(
    perceptual: nn.Module, image: Tensor, reconstruction: Tensor, positions: Tensor
) -> Tensor:
    pairs = zip(take_slices(image, positions), take_slices(reconstruction, positions), strict=True)
    return torch.stack([perceptual(real, fake).mean() for real, fake in pairs]).mean()
