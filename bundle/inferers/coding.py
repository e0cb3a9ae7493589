"""Turns whole volumes into codes and back, for encode.yaml and decode.yaml."""

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

from bundle.inferers.halo import HaloInferer


class EncodingInferer(Inferer):
    """Encodes a volume in slabs or tiles; see `HaloInferer`.

    Args:
        tiling: sizes of tiles and halo.
        keep_latents: whether to return the encoder's output before quantization besides the codes.
    """

    def __init__(self, tiling: HaloInferer, keep_latents: bool = False) -> None:
        super().__init__()
        self.tiling = tiling
        self.keep_latents = keep_latents

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Turns a volume (B, 1, X, Y, Z) in [-1, 1] into (B, C, x, y, z) float32 on the volume's device.

        Channel 0 holds the indices (exact: K is at most 65536); with `keep_latents` the E latents follow.
        """
        if not self.keep_latents:
            return self.tiling.encode(inputs, network).unsqueeze(1).float()
        latent = self.tiling.encode_latent(inputs, network)
        # each cell is quantized alone, so the whole map gives the same indices as its tiles
        indices = network.quantizer.quantize(latent.to(_device(network)))  # type: ignore[attr-defined]
        return torch.cat([indices.unsqueeze(1).to(latent), latent], dim=1)


class DecodingInferer(Inferer):
    """Decodes a map of indices, or of latents, in slabs or tiles; see `HaloInferer`.

    Latents are quantized again first. They were rounded to float16, so a few cells may get another code.

    Args:
        tiling: sizes of tiles and halo.
    """

    def __init__(self, tiling: HaloInferer) -> None:
        super().__init__()
        self.tiling = tiling

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Turns indices (B, 1, x, y, z) or latents (B, E, x, y, z) into a volume (B, 1, 4x, 4y, 4z)."""
        codes = inputs.as_subclass(Tensor)
        if codes.is_floating_point():
            indices = network.quantizer.quantize(codes.to(_device(network)))  # type: ignore[attr-defined]
        else:
            indices = codes.squeeze(1).long()
        return self.tiling.decode(indices.to(codes.device), network)


def _device(network: Any) -> torch.device:
    return next(network.parameters()).device
