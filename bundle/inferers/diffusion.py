"""Runs denoising diffusion on latents that know where they lie; the VQ-GAN turns a sample into a volume.

Dimension letters: B batch, E embedding width, X Y Z voxels, x y z latent cells (X = 4 x).
"""

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import DiffusionInferer, Inferer
from monai.networks.schedulers import DDPMScheduler
from torch import Tensor, nn

from bundle.inferers.coding import DecodingInferer
from bundle.inferers.halo import HaloInferer
from bundle.run.rules import check


class PositionedDiffusion(Inferer):
    """MONAI's DiffusionInferer, for a network that sees the positions of cells as further channels.

    Paper: Ho et al. 2020, arXiv:2006.11239.

    Args:
        timesteps: number of noise steps, in training and in sampling, at least 20. The last step has the same
            noise for every number.

    Raises:
        SettingsError: if there are fewer.
    """

    def __init__(self, timesteps: int = 1000) -> None:
        super().__init__()
        check(timesteps=timesteps)
        betas: dict[str, Any] = {"beta_start": 1.5 / timesteps, "beta_end": 19.5 / timesteps}
        # latents are no pictures in [-1, 1] to be clipped
        self.scheduler = DDPMScheduler(timesteps, "scaled_linear_beta", clip_sample=False, **betas)
        self.diffusion = DiffusionInferer(self.scheduler)

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Predicts the noise in normalised latents (B, E, x, y, z), to which it is added first.

        Of `kwargs` it takes what `DiffusionPrepareBatch` gives: `noise` like the latents, `timesteps` (B,)
        and as `condition` the positions (B, 3, x, y, z) in [-1, 1].
        """
        model: Any = network
        return self.diffusion(inputs, model, **kwargs, mode="concat")

    def sample(self, noise: Tensor, network: nn.Module, position: Tensor, progress: bool) -> Tensor:
        """Turns noise (B, E, x, y, z) at positions (B, 3, x, y, z) into normalised latents."""
        model: Any = network
        sampled: Any = self.diffusion.sample(
            noise, model, conditioning=position, mode="concat", verbose=progress
        )
        return sampled


@torch.no_grad()
def sample_image(
    diffusion: PositionedDiffusion,
    network: nn.Module,
    position: Tensor,
    restore: Callable[[Tensor], Tensor],
    vqgan: Any,
    tiling: HaloInferer,
    seed: int,
) -> Tensor:
    """Samples a latent, quantizes it to the nearest codes and decodes these codes.

    Args:
        diffusion: with the timesteps that `network` was trained with.
        network: the diffusion model; left in eval mode.
        position: (3, x, y, z), where the sample lies in its volume; see `bundle.data.latents.dataset`.
        restore: turns normalised latents into the latents that the decoder takes.
        vqgan: with weights.
        tiling: sizes of tiles and halo of the decoder.
        seed: of all noise; the same sample on the same kind of device.

    Returns:
        (1, X, Y, Z) float32, about [-1, 1], on the CPU.
    """
    device = next(network.parameters()).device
    network.eval()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        noise = torch.randn(1, vqgan.quantizer.embedding_dim, *position.shape[1:]).to(device)
        maps = position[None].to(device)
        latent = diffusion.sample(noise, network, maps, tiling.progress)
    return DecodingInferer(tiling)(restore(latent), vqgan)[0].cpu()
