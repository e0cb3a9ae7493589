"""Builds the two PatchGAN discriminators: one looks at slices, one at volumes.

Both are MONAI's `PatchDiscriminator` and return all feature maps, logits last. They use instance norm. With
batch norm the gradients of micro-batches would differ from the full batch's, and its buffers would move while
the discriminator is frozen.
Papers: Isola et al. 2017, arXiv:1611.07004; spectral normalisation: Miyato et al. 2018, arXiv:1802.05957,
eq. 8 and algorithm 1.
"""

import torch
from monai.networks.nets import PatchDiscriminator
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm as parametrize_spectral_norm

# Below this many voxels per axis the last normalised feature map has a single element.
MIN_PATCH_SIZE = 24


class SliceDiscriminator(PatchDiscriminator):
    """Judges slices (N, 1, H, W): a 2D PatchGAN of 2,763,585 parameters."""

    def __init__(self) -> None:
        super().__init__(**_settings(spatial_dims=2))


class VolumeDiscriminator(PatchDiscriminator):
    """Judges patches (B, 1, X, Y, Z): a 3D PatchGAN of 11,048,769 parameters."""

    def __init__(self) -> None:
        super().__init__(**_settings(spatial_dims=3))


def _settings(spatial_dims: int) -> dict:
    return {
        "spatial_dims": spatial_dims,
        "channels": 64,
        "in_channels": 1,
        "out_channels": 1,
        "num_layers_d": 3,
        "norm": ("INSTANCE", {"affine": True}),
    }


def build_discriminators(
    image_gan_weight: float,
    video_gan_weight: float,
    spectral_norm: bool = False,
    device: torch.device | str = "cpu",
) -> nn.ModuleDict:
    """Builds the discriminators of weight above 0, named `image` (slices) and `video` (volumes), frozen.

    They are trainable only in their own step (`DiscriminatorUpdate`), so the generator's backward pass leaves
    no gradients in them. With `spectral_norm` their checkpoints hold other names.
    """
    discriminators = nn.ModuleDict()
    if image_gan_weight > 0:
        discriminators["image"] = SliceDiscriminator()
    if video_gan_weight > 0:
        discriminators["video"] = VolumeDiscriminator()
    if spectral_norm:
        add_spectral_norm(discriminators)
    if "video" in discriminators:
        discriminators["video"].to(memory_format=torch.channels_last_3d)
    return discriminators.requires_grad_(False).to(device)


def add_spectral_norm(network: nn.Module) -> nn.Module:
    """Divides the weight of every convolution by its largest singular value.

    The network is left in eval mode, in which the estimate of that value stands still; only
    `refine_estimates` moves it. So neither the number of forward passes nor the micro-batch size matters.
    """
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            parametrize_spectral_norm(module)
    return network.eval()


def refine_estimates(network: nn.Module) -> None:
    """Makes one step of power iteration for every normalised weight, after the weights have moved."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d) and hasattr(module, "parametrizations"):
            module.train()
            module.weight  # noqa: B018  (reading it in training mode moves the estimate)
            module.eval()
