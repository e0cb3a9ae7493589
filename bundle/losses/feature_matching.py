"""Compares a discriminator's features of images with those of reconstructions."""

from collections.abc import Sequence

import torch
from torch import Tensor


def feature_matching_loss(real_features: Sequence[Tensor], fake_features: Sequence[Tensor]) -> Tensor:
    """Sums the mean absolute difference over all feature maps but the last (the logits).

    Paper: Wang et al. 2018, arXiv:1711.11585, eq. 4 (deviation: means in place of sums over a map).

    Args:
        real_features: maps of the images, logits last; no gradient flows into them.
        fake_features: maps of the reconstructions, of the same shapes.

    Returns:
        float32 scalar.
    """
    differences = [
        (real.detach().float() - fake.float()).abs().mean()
        for real, fake in zip(real_features[:-1], fake_features[:-1], strict=True)
    ]
    return torch.stack(differences).sum()
