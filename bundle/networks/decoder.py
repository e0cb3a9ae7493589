"""Decodes a latent to an image, by upsampling that draws no grid.

Dimension letters: B batch, C channels, E embedding width, X Y Z voxels, x y z latent cells.
"""

import math
from collections.abc import Sequence

import torch
from monai.networks.blocks import Convolution
from monai.networks.nets.vqvae import VQVAEResidualUnit
from torch import Tensor, nn

STRIDE = 2
"""Factor of one upsampling per axis."""
SCALE = 4
"""Weights of an upsampling before the average, over its parameters."""


class BlurredUpsample(nn.Module):
    """Doubles the resolution by a transposed convolution followed by an average over 2 x 2 x 2 voxels.

    A transposed convolution gives each of the eight sub-voxels its own weights, and so draws a grid with a
    period of two voxels. The average removes exactly this period: where the features are constant, so is the
    result. Both operations are linear, so the kernel is averaged instead of the features: a kernel of 3
    becomes one of 4, at the cost of a plain kernel of 4. Training starts from the kernel of trilinear
    interpolation, which treats all sub-voxels alike (ICNR), with weights that keep the variance (He).

    The parameters are the kernel of 3 over `SCALE`. Adam moves each parameter by about the learning rate,
    and an average of eight moves less than each of them: without the scale the kernel learned half as fast
    as that of a plain layer, and edges stayed blurred (docs/network.md).
    Papers: Aitken et al. 2017, arXiv:1707.02937; Sugawara et al. 2019, arXiv:1802.02275; He et al. 2015,
    arXiv:1502.01852.

    Args:
        in_channels: width of the features that are upsampled.
        out_channels: width of the result.

    Attributes:
        kernel_size, stride, padding: of the transposed convolution that is run.
    """

    kernel_size, stride, padding = 4, STRIDE, 1

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.scaled_weight = nn.Parameter(torch.empty(in_channels, out_channels, 3, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.gain = SCALE / 8  # of an average of eight; TorchScript reads no constants of a module
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws the weights of one channel mixture and spreads each over trilinear interpolation."""
        in_channels, out_channels = self.scaled_weight.shape[:2]
        tent = torch.tensor([0.5, 1.0, 0.5], device=self.scaled_weight.device)
        mixture = torch.randn(in_channels, out_channels, device=self.scaled_weight.device)
        mixture = mixture * math.sqrt(2 / in_channels) / SCALE
        self.scaled_weight.copy_(mixture[:, :, None, None, None] * tent[:, None, None] * tent[:, None] * tent)
        self.bias.zero_()

    def kernel(self) -> Tensor:
        """Returns the weights (C in, C out, 4, 4, 4) of upsampling and average in one."""
        kernel = nn.functional.pad(self.scaled_weight, [1] * 6)
        kernel = kernel[:, :, 1:] + kernel[:, :, :-1]
        kernel = kernel[:, :, :, 1:] + kernel[:, :, :, :-1]
        kernel = kernel[:, :, :, :, 1:] + kernel[:, :, :, :, :-1]
        return kernel * self.gain

    def forward(self, features: Tensor) -> Tensor:
        """Turns features (B, C in, x, y, z) into (B, C out, 2x, 2y, 2z)."""
        return nn.functional.conv_transpose3d(features, self.kernel(), self.bias, stride=2, padding=1)


class Decoder(nn.Module):
    """Runs residual units and upsampling per level, then one convolution at full resolution; no norm layers.

    The residual units are those of MONAI's VQ-VAE, whose encoder is the first half of the network.

    Args:
        in_channels: width E of the code vectors.
        channels: width of each level, finest first; each level doubles the resolution.
        num_res_layers: residual units per level.
        tail_channels: width at full resolution.
    """

    def __init__(
        self, in_channels: int, channels: Sequence[int], num_res_layers: int, tail_channels: int
    ) -> None:
        super().__init__()
        widths = [*reversed(channels), tail_channels]
        blocks: list[nn.Module] = [Convolution(3, in_channels, widths[0], conv_only=True)]
        for width, next_width in zip(widths, widths[1:], strict=False):
            blocks += [VQVAEResidualUnit(3, width, width) for _ in range(num_res_layers)]
            blocks.append(nn.Sequential(BlurredUpsample(width, next_width), nn.ReLU()))
        blocks.append(_last_convolution(tail_channels))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, codes: Tensor) -> Tensor:
        """Turns code vectors (B, E, x, y, z) into an image (B, 1, X, Y, Z)."""
        for block in self.blocks:
            codes = block(codes)
        return codes


def _last_convolution(in_channels: int) -> nn.Module:
    """Returns the convolution to the image, with first weights that keep the variance (He)."""
    last = Convolution(3, in_channels, 1, conv_only=True)
    weight, bias = last.parameters()
    nn.init.kaiming_normal_(weight, nonlinearity="relu")
    nn.init.zeros_(bias)
    return last
