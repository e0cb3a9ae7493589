"""Computes LPIPS of a volume's slices, a distance that follows what people call similar."""

import torch
from torch import Tensor, nn

LPIPS_SLICES = 16


@torch.no_grad()
def slice_lpips(perceptual: nn.Module, image: Tensor, pred: Tensor) -> float:
    """Averages the distance over up to 16 evenly spread axial slices of volumes (1, X, Y, Z) in [-1, 1].

    Paper: Zhang et al. 2018, arXiv:1801.03924; a figure is comparable only with the same backbone.
    """
    count = min(LPIPS_SLICES, image.shape[-1])
    slices = torch.linspace(0, image.shape[-1] - 1, count).round().long()
    device = next(perceptual.parameters()).device
    distances = [
        perceptual(image[None, ..., z].to(device), pred[None, ..., z].to(device)) for z in slices.tolist()
    ]
    return float(torch.cat(distances).mean())
