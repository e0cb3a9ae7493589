"""Builds the generator: MONAI's VQ-VAE encoder, a quantizer, and a decoder that draws no grid.

Dimension letters: B batch, E embedding width, X Y Z voxels, x y z latent cells (X = 4 x).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from monai.networks.nets.vqvae import Encoder
from torch import Tensor, nn

from bundle.networks.decoder import Decoder
from bundle.networks.fsq import FSQ
from bundle.networks.quantizer import EMACodebook, NetworkSettingError, Quantizer
from bundle.networks.receptive_field import halo_radius
from bundle.networks.slabs import InFloat32, InSlabs, Slabs

EMBEDDING_DIM = 8


@dataclasses.dataclass(frozen=True)
class Preset:
    """Says how large a generator is."""

    channels: tuple[int, ...]
    """Width of each level, finest first; each level halves the resolution."""
    num_res_layers: int
    """Residual units per level."""
    tail_channels: int
    """Width of the decoder at full resolution."""

    @property
    def stride(self) -> int:
        """Returns the voxels per latent cell and axis."""
        return 2 ** len(self.channels)


PRESETS = {
    "default": Preset(channels=(64, 256), num_res_layers=3, tail_channels=16),
    "large": Preset(channels=(256, 256), num_res_layers=3, tail_channels=16),
    "lite": Preset(channels=(48, 96), num_res_layers=1, tail_channels=16),
}


class Reconstruction(NamedTuple):
    """Holds what one pass gives: image (B, 1, X, Y, Z), commitment loss, indices (B, x, y, z)."""

    image: Tensor
    commitment_loss: Tensor
    indices: Tensor


class VQGAN(nn.Module):
    """Encodes and decodes CT by patches, so that tiles give the same result as the whole volume.

    A tile needs a halo of `halo` voxels for that, and no layer may take statistics over space: with GroupNorm
    a tile differs from the whole by 15-21 % far from the cut.
    Papers: van den Oord et al. 2017, arXiv:1711.00937; Esser et al. 2021, arXiv:2012.09841.

    Args:
        preset: the sizes.
        quantizer: see `build_quantizer`.

    Attributes:
        stride: voxels per latent cell and axis.
        halo: voxels of context that make a tile exact, when encoding alone or decoding alone.
        bytes_per_voxel: about what activations take when encoding or decoding without gradients.
    """

    def __init__(self, preset: Preset, quantizer: Quantizer) -> None:
        super().__init__()
        channels = preset.channels
        self.encoder = Encoder(
            spatial_dims=3,
            in_channels=1,
            out_channels=EMBEDDING_DIM,
            channels=channels,
            num_res_layers=preset.num_res_layers,
            num_res_channels=channels,
            downsample_parameters=((2, 4, 1, 1),) * len(channels),
            dropout=0.0,
            act="RELU",
        )
        self.decoder = Decoder(EMBEDDING_DIM, channels, preset.num_res_layers, preset.tail_channels)
        self.quantizer = quantizer
        self.register_load_state_dict_pre_hook(take_model)
        self.stride = preset.stride
        self.halo = halo_radius(self.encoder, self.decoder, self.stride)
        # In float32. A residual unit holds its input, its output and two intermediates. Full resolution holds
        # the upsampled features before and after their activation, what they come from, and the image.
        units = max(4 * (width // 8**level + 1) for level, width in enumerate(channels, start=1))
        tail = channels[0] // 8 + 2 * preset.tail_channels + 2
        self.bytes_per_voxel = 4 * max(units, tail)

    def encode_latent(self, image: Tensor) -> Tensor:
        """Turns an image (B, 1, X, Y, Z) in [-1, 1] into the latent (B, E, x, y, z), before quantization."""
        return self.encoder(image)

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Turns code vectors (B, E, x, y, z) into an image (B, 1, X, Y, Z)."""
        *blocks, last = self.decoder.blocks
        for block in blocks:
            codes = block(codes)
        # Under autocast voxels would be bf16, whose steps in lung and bone are 4 HU wide.
        with torch.autocast(codes.device.type, enabled=False):
            return last(codes.float())

    def encode(self, image: Tensor) -> Tensor:
        """Turns an image (B, 1, X, Y, Z) in [-1, 1] into indices (B, x, y, z), int64 in [0, K)."""
        return self.quantizer.quantize(self.encode_latent(image))

    def decode(self, indices: Tensor) -> Tensor:
        """Turns indices (B, x, y, z) into an image (B, 1, X, Y, Z)."""
        return self.decode_codes(self.quantizer.indices_to_codes(indices))

    def encode_latent_in_slabs(self) -> Slabs:
        """Returns `encode_latent` for the slabs of one volume."""
        return InSlabs(self.encoder.blocks)

    def encode_in_slabs(self) -> Slabs:
        """Returns `encode` for the slabs of one volume; whoever changes one must change the other."""
        return InSlabs([*self.encoder.blocks, self.quantizer.quantize])

    def decode_in_slabs(self) -> Slabs:
        """Returns `decode` for the slabs of one volume; whoever changes one must change the other."""
        *blocks, last = self.decoder.blocks
        return InSlabs([self.quantizer.indices_to_codes, *blocks, InFloat32([last])])

    @torch.no_grad()
    def code_vectors(self) -> Tensor:
        """Returns the vector of every code, as the decoder sees it: (K, E) float32 on the CPU."""
        indices = torch.arange(self.quantizer.num_embeddings, device=next(self.parameters()).device)
        codes = self.quantizer.indices_to_codes(indices[None, :, None, None])
        return codes[0, :, :, 0, 0].t().contiguous().cpu()

    def reconstruct(self, image: Tensor) -> Reconstruction:
        """Reconstructs an image (B, 1, X, Y, Z) in [-1, 1], and returns what training needs besides."""
        codes, commitment_loss, indices = self.quantizer(self.encode_latent(image))
        return Reconstruction(self.decode_codes(codes), commitment_loss, indices)

    def forward(self, image: Tensor) -> Tensor:
        """Reconstructs an image (B, 1, X, Y, Z) in [-1, 1]; the result has the same shape."""
        if torch.jit.is_scripting():  # MONAI exports this part, without training
            indices = self.quantizer.quantize(self.encoder(image))
            recon = self.decoder(self.quantizer.indices_to_codes(indices))
        else:
            recon = self.reconstruct(image).image
        return recon


def take_model(module: nn.Module, state_dict: dict[str, Any], *_: Any) -> None:
    """Lets `load_state_dict` take a whole checkpoint, as a hook: it loads what stands under `model`.

    MONAI's exports and the model zoo's checks pass the whole file unless `--key_in_ckpt model` is given.
    """
    model = state_dict.get("model")
    if isinstance(model, Mapping):
        state_dict.clear()
        state_dict.update(model)


def build_quantizer(quantizer: str, num_embeddings: int) -> Quantizer:
    """Builds the quantizer by its name in the configs, `ema` or `fsq`.

    Raises:
        NetworkSettingError: unknown name, or `num_embeddings` outside 2..65536 (uint16 indices).
    """
    if not 2 <= num_embeddings <= 65536:
        raise NetworkSettingError(
            f"`num_embeddings` must lie in 2..65536 (indices are stored as uint16), got {num_embeddings}"
        )
    if quantizer == "ema":
        return EMACodebook(num_embeddings, EMBEDDING_DIM)
    if quantizer == "fsq":
        return FSQ(num_embeddings, EMBEDDING_DIM)
    raise NetworkSettingError(f"`quantizer` must be 'ema' or 'fsq', got {quantizer!r}")


def build_vqgan(preset: str = "default", quantizer: str = "ema", num_embeddings: int = 16384) -> VQGAN:
    """Builds the generator by the name of its preset in the configs.

    Args:
        preset: `default` (24.2 M parameters, 1.08 MFLOP per voxel), `large` (48.7 M, 6.3 MFLOP per voxel) or
            `lite` (1.7 M, 0.13 MFLOP per voxel, for CPUs).
        quantizer: `ema` (codebook by moving averages) or `fsq` (fixed grid, K a power of 4).
        num_embeddings: number of codes K.

    Raises:
        NetworkSettingError: if a name is unknown or K is out of range.
    """
    if preset not in PRESETS:
        raise NetworkSettingError(f"`preset` must be one of {', '.join(PRESETS)}, got {preset!r}")
    network = VQGAN(PRESETS[preset], build_quantizer(quantizer, num_embeddings))
    # Faster on a GPU in bf16 and on a CPU; copying, loading and moving the network keep it. The layout is set
    # here so that everybody has the same one: a sum in another order differs in its last bit.
    return network.to(memory_format=torch.channels_last_3d)
