"""Computes penalties that keep discriminators from winning, off by default: R1 and LeCam."""

import torch
from torch import Tensor, nn

from bundle.distributed.collectives import all_reduce

_TINY = 1e-12


def r1_penalty(image: Tensor, logits: Tensor) -> Tensor:
    """Returns the mean over samples of the squared 2-norm of the discriminator's gradient at real images.

    Paper: Mescheder et al. 2018, arXiv:1801.04406, eq. 9 without its gamma / 2 (deviation: a PatchGAN's D(x)
    is the mean of its logit map).

    Args:
        image: (N, 1, ...) with `requires_grad`, seen by the discriminator.
        logits: what it gave for it, (N, 1, ...); samples do not mix.

    Returns:
        float32 scalar with a graph, so that its own gradient reaches the discriminator.
    """
    per_sample = logits.float().flatten(1).mean(dim=1)
    (gradient,) = torch.autograd.grad(per_sample.sum(), image, create_graph=True)
    return gradient.float().square().flatten(1).sum(dim=1).mean()


class LeCamAnchors(nn.Module):
    """Keeps moving averages of each discriminator's logits; LeCam pulls the logits towards them.

    They move once per iteration, after the discriminators' step, by the mean logits of all its micro-batches
    and ranks, and are bias-corrected. Before the first step there is nothing to pull to. Checkpoints hold
    them.
    Paper: Tseng et al. 2021, arXiv:2104.03310.

    Args:
        decay: of the averages, per iteration.
    """

    anchors: Tensor
    updates: Tensor

    NAMES = ("image", "video")

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("anchors", torch.zeros(len(self.NAMES), 2))  # of real and of fake logits
        self.register_buffer("updates", torch.zeros(()))
        self._means: dict[str, Tensor] = {}

    def penalty(self, name: str, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Returns mean (D(real) - anchor of fake)^2 + mean (D(fake) - anchor of real)^2; float32 scalar."""
        correction = 1 - self.decay**self.updates
        real_anchor, fake_anchor = self.anchors[self.NAMES.index(name)] / correction.clamp_min(_TINY)
        to_fake = (real_logits.float() - fake_anchor).square().mean()
        to_real = (fake_logits.float() - real_anchor).square().mean()
        return (to_fake + to_real) * (self.updates > 0)

    def start(self) -> None:
        """Forgets what `collect` gathered; called when an iteration begins or is repeated."""
        self._means.clear()

    @torch.no_grad()
    def collect(self, name: str, real_logits: Tensor, fake_logits: Tensor, share: float) -> None:
        """Adds a view's mean logits, weighted by `share` of its iteration."""
        means = torch.stack([real_logits.float().mean(), fake_logits.float().mean()]) * share
        self._means[name] = self._means[name] + means if name in self._means else means

    @torch.no_grad()
    def update(self) -> None:
        """Moves the averages by what was collected; those of a discriminator that did not run stay."""
        if not self._means:
            return
        for name, means in self._means.items():
            ranks = torch.ones((), device=means.device)
            all_reduce(means)
            all_reduce(ranks)
            self.anchors[self.NAMES.index(name)].lerp_(means / ranks, 1 - self.decay)
        self.updates += 1
        self._means.clear()
