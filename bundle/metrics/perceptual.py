"""LPIPS of a volume's slices, a distance that follows what people call similar."""

import torch
from torch import Tensor, nn

LPIPS_SLICES = 16


@torch.no_grad()
def slice_lpips(perceptual: nn.Module, image: Tensor, pred: Tensor) -> float:
    """Mean distance of at most 16 axial slices of two volumes (1, X, Y, Z) in [-1, 1], evenly spread.

    Paper: Zhang et al. 2018, arXiv:1801.03924; the backbone belongs to the figure.
    """
    count = min(LPIPS_SLICES, image.shape[-1])
    slices = torch.linspace(0, image.shape[-1] - 1, count).round().long()
    device = next(perceptual.parameters()).device
    distances = [
        perceptual(image[None, ..., z].to(device), pred[None, ..., z].to(device)) for z in slices.tolist()
    ]
    return float(torch.cat(distances).mean())
