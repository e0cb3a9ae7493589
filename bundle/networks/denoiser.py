"""Builds the example diffusion model's network: MONAI's U-Net on a latent and a map of positions."""

from collections.abc import Sequence

from monai.networks.nets import DiffusionModelUNet
from monai.utils import optional_import

from bundle.networks.quantizer import NetworkSettingError
from bundle.run.rules import STRIDE

GROUPS = 32
POSITION_CHANNELS = 3


def build_denoiser(
    diffusion_channels: Sequence[int], embedding_dim: int, patch_size: Sequence[int]
) -> DiffusionModelUNet:
    """Builds a U-Net with attention in its middle block only; unlike the VQ-GAN it sees patches, not volumes.

    Args:
        diffusion_channels: per level; each level but the last halves the resolution.
        embedding_dim: width E of the latent.
        patch_size: voxels per axis that it will see.

    Returns:
        takes (B, E + 3, x, y, z) and timesteps (B,), gives (B, E, x, y, z).

    Raises:
        NetworkSettingError: if the sizes do not fit each other, or if einops is not installed.
    """
    if not optional_import("einops")[1]:
        raise NetworkSettingError("`network` must have einops, which MONAI's U-Net needs; pip install einops")
    if any(width < GROUPS or width % GROUPS for width in diffusion_channels) or not diffusion_channels:
        raise NetworkSettingError(
            f"`diffusion_channels` must be multiples of {GROUPS}, got {list(diffusion_channels)}"
        )
    levels = len(diffusion_channels)
    step = STRIDE * 2 ** (levels - 1)
    if any(size % step for size in patch_size):
        raise NetworkSettingError(
            f"`patch_size` must be made of multiples of {step} voxels for {levels} levels of "
            f"`diffusion_channels`, got {list(patch_size)}; change either"
        )
    return DiffusionModelUNet(
        spatial_dims=3,
        in_channels=embedding_dim + POSITION_CHANNELS,
        out_channels=embedding_dim,
        channels=tuple(diffusion_channels),
        attention_levels=(False,) * len(diffusion_channels),
        num_res_blocks=1,
        norm_num_groups=GROUPS,
        num_head_channels=GROUPS,
    )
