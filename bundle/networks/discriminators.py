"""The two PatchGAN discriminators: one looks at slices, one at volumes.

Both are MONAI's `PatchDiscriminator` and return all feature maps, logits last. Instance norm instead of batch
norm: batch statistics make micro-batched gradients differ from the full batch's, and their buffers move while
the discriminator is frozen.
Papers: Isola et al. 2017, arXiv:1611.07004; spectral normalisation: Miyato et al. 2018, arXiv:1802.05957,
eq. 8 and algorithm 1.
"""

import torch
from monai.networks.nets import PatchDiscriminator
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm as parametrize_spectral_norm

# below this many voxels per axis the last normalised feature map has a single element
MIN_PATCH_SIZE = 24


class SliceDiscriminator(PatchDiscriminator):
    """2D PatchGAN on slices (N, 1, H, W); 2,763,585 parameters."""

    def __init__(self) -> None:
        super().__init__(**_settings(spatial_dims=2))


class VolumeDiscriminator(PatchDiscriminator):
    """3D PatchGAN on patches (B, 1, X, Y, Z); 11,048,769 parameters."""

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
    """The discriminators whose weight is above 0, named `image` (slices) and `video` (volumes), frozen.

    They stay frozen but for their own step (`DiscriminatorUpdate`), so that the generator's backward pass
    neither computes nor leaves gradients in them. With `spectral_norm` their checkpoints hold other names.
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

    The estimate of that value stands still in eval mode, which the network is left in; `refine_estimates`
    moves it. So the number of forward passes, and with it the micro-batch size, changes nothing.
    """
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            parametrize_spectral_norm(module)
    return network.eval()


def refine_estimates(network: nn.Module) -> None:
    """One step of power iteration of every normalised weight, after the weights have moved."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d) and hasattr(module, "parametrizations"):
            module.train()
            module.weight  # noqa: B018  (reading it in training mode is what moves the estimate)
            module.eval()
