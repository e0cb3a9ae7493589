"""How far one voxel reaches through a stack of convolutions: the halo that makes tiling exact."""

import math

from torch import nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def input_interval(layers: nn.Module, first: int, last: int) -> tuple[int, int]:
    """The first and last input position, per axis, that outputs `first`..`last` depend on.

    The convolutions of `layers` are taken to run one after another in the order of their registration; what
    runs beside them (a residual connection) has to reach no further. Kernels are taken to be cubic.
    """
    convolutions = [module for module in layers.modules() if isinstance(module, _CONVOLUTIONS)]
    for conv in reversed(convolutions):
        reach = (conv.kernel_size[0] - 1) * conv.dilation[0]
        stride, padding = conv.stride[0], int(conv.padding[0])
        if isinstance(conv, _TRANSPOSED):
            # output o takes input i if o = i * stride - padding + j, 0 <= j <= reach
            first = math.ceil((first + padding - reach) / stride)
            last = (last + padding) // stride
        else:
            first = first * stride - padding
            last = last * stride - padding + reach
    return first, last


def halo_radius(encoder: nn.Module, decoder: nn.Module, stride: int) -> int:
    """Voxels of context, rounded up to `stride`, that one latent cell needs when encoding or decoding alone.

    Args:
        encoder: image to latent, `stride` voxels per latent cell and axis.
        decoder: latent to image.
        stride: voxels per latent cell.
    """
    first, last = input_interval(encoder, 0, 0)
    encode_reach = max(-first, last - (stride - 1))
    first, last = input_interval(decoder, 0, stride - 1)
    decode_reach = max(-first, last) * stride
    return max(math.ceil(encode_reach / stride) * stride, decode_reach)
