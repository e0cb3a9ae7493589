"""Converts an HU window to the network range [-1, 1] and back; no other module does this.

Whole HU inside the window come back exactly.
"""

import math

import torch
from torch import Tensor


def to_network_range(hu: Tensor, hu_min: float, hu_max: float) -> Tensor:
    """Turns HU of any numeric type and shape into [-1, 1], float32, clipped, with a single copy."""
    centre, half_width = _centre_and_half_width(hu_min, hu_max)
    return hu.to(torch.float32, copy=True).sub_(centre).div_(half_width).clamp_(-1, 1)


def to_hu(image: Tensor, hu_min: float, hu_max: float) -> Tensor:
    """Turns an image of about [-1, 1] into HU with fractions, float32, not clipped."""
    centre, half_width = _centre_and_half_width(hu_min, hu_max)
    return image.to(torch.float32, copy=True).mul_(half_width).add_(centre)


def to_whole_hu(image: Tensor, hu_min: float, hu_max: float) -> Tensor:
    """Turns an image of about [-1, 1] into whole HU in the window, int16."""
    rounded = to_hu(image, hu_min, hu_max).round_()
    return rounded.clamp_(math.ceil(hu_min), math.floor(hu_max)).to(torch.int16)


def is_finite(image: Tensor) -> bool:
    """Tells whether all values are finite, without copying the volume."""
    return all(bool(torch.isfinite(end)) for end in torch.aminmax(image))


def _centre_and_half_width(hu_min: float, hu_max: float) -> tuple[float, float]:
    return (hu_min + hu_max) / 2, (hu_max - hu_min) / 2
