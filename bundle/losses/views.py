"""Cuts what the discriminators and LPIPS see of a patch: the volume itself, and one slice of each axis."""

import torch
from torch import Tensor


def draw_positions(shape: torch.Size, seed: int, iteration: int) -> Tensor:
    """Draws one slice position per sample and axis for a batch (B, 1, X, Y, Z): (B, 3) int64, CPU.

    It depends on seed and iteration alone, so micro-batches share one draw and a resumed run repeats it.
    """
    generator = torch.Generator().manual_seed(((seed * 1_000_003) + iteration) * 4099)
    share = torch.rand((shape[0], 3), generator=generator, dtype=torch.float64)
    return (share * torch.tensor(shape[2:], dtype=torch.float64)).long()


def take_slices(volume: Tensor, positions: Tensor) -> list[Tensor]:
    """Returns the slices of `volume` (B, 1, X, Y, Z) at `positions` (B, 3), one per sample and axis.

    Returns:
        One tensor (B, 1, H, W) per axis; for cubic patches one (3 B, 1, H, W) of all three.
    """
    sample = torch.arange(volume.shape[0], device=volume.device)
    x, y, z = positions.to(volume.device).unbind(dim=1)
    slices = [volume[sample, :, x], volume[sample, :, :, y], volume[sample, :, :, :, z]]
    if len({view.shape for view in slices}) == 1:
        return [torch.cat(slices)]
    return slices


def discriminator_views(volume: Tensor, positions: Tensor, name: str) -> list[Tensor]:
    """Returns what the discriminator `name` sees of `volume`: `image` its slices, `video` the whole patch."""
    return take_slices(volume, positions) if name == "image" else [volume]
