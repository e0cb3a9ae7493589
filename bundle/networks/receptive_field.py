"""Computes how far one voxel reaches through a stack of layers: the halo that makes tiling exact."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from monai.networks.blocks import ADN, Convolution, SubpixelUpsample, UpSample
from monai.networks.nets.vqvae import Encoder, VQVAEResidualUnit
from torch import nn

from bundle.networks.decoder import BlurredUpsample, Decoder
from bundle.networks.quantizer import NetworkSettingError

Interval = tuple[int, int]


def input_interval(layers: nn.Module, first: int, last: int) -> Interval:
    """Returns the first and last input position, per axis, that outputs `first`..`last` depend on.

    Layers are taken to run one after another, in the order of their registration. A residual connection
    beside them must not reach further.

    Raises:
        NetworkSettingError: if a layer has no rule here. Without a rule the halo would be too small, and
            tiles would differ from the whole with no error.
    """
    for rule in reversed(list(_rules(layers))):
        first, last = rule((first, last))
    return first, last


def halo_radius(encoder: nn.Module, decoder: nn.Module, stride: int) -> int:
    """Returns the voxels of context that encoding alone, or decoding alone, of one latent cell needs.

    They are rounded up to a multiple of `stride`.

    Args:
        encoder: image to latent, `stride` voxels per latent cell and axis.
        decoder: latent to image.
        stride: voxels per latent cell.

    Raises:
        NetworkSettingError: if a layer has no rule here.
    """
    first, last = input_interval(encoder, 0, 0)
    encode_reach = max(-first, last - (stride - 1))
    first, last = input_interval(decoder, 0, stride - 1)
    decode_reach = max(-first, last) * stride
    return max(math.ceil(encode_reach / stride) * stride, decode_reach)


def _rules(layer: Any) -> Iterator[Callable[[Interval], Interval]]:
    """Yields the rules of all layers inside `layer`, in the order in which they run."""
    kind = type(layer)  # a subclass may do more than its parent
    if kind in _POINTWISE:
        return
    if kind in _LAYERS:
        rule, sides = _LAYERS[kind], _of_one_axis(layer)
        yield lambda outputs: rule(outputs, *sides)
    elif kind is SubpixelUpsample:
        yield from _rules(layer.conv_block)
        yield lambda outputs: _repeat(outputs, layer.scale_factor)
        yield from _rules(layer.pad_pool)
    elif kind in _CONTAINERS:
        for child in layer.children():
            yield from _rules(child)
    else:
        raise NetworkSettingError(
            f"`network` has a layer {kind.__name__} whose reach is not known, so that its halo cannot be "
            "computed; add a rule for it to bundle/networks/receptive_field.py"
        )


def _of_one_axis(layer: Any) -> Sequence[Any]:
    """Returns the numbers that a layer's rule takes; they must be the same on every axis."""
    kind = type(layer)
    if kind in _PADS:
        sides = [tuple(layer.padding[at : at + 2]) for at in range(0, len(layer.padding), 2)]
        return (_only(layer, "padding", sides)[0],)
    if kind is nn.Upsample:
        if layer.mode != "nearest" or layer.scale_factor is None:
            raise _refused(layer, f"mode {layer.mode} and scale_factor {layer.scale_factor}")
        scale = _only(layer, "scale_factor", layer.scale_factor)
        if scale != int(scale):
            raise _refused(layer, f"scale_factor {scale}")
        return (int(scale),)
    if getattr(layer, "padding_mode", "zeros") not in ("zeros", "replicate"):
        raise _refused(layer, f"padding_mode {layer.padding_mode}")
    names = ("kernel_size", "stride", "padding", "dilation")
    kernel, stride, padding, dilation = (_only(layer, name, getattr(layer, name, 1)) for name in names)
    reach = (kernel - 1) * dilation
    return reach, stride, reach // 2 if padding == "same" else 0 if padding == "valid" else padding


def _only(layer: nn.Module, name: str, value: Any) -> Any:
    values = {value} if isinstance(value, int | float | str) else set(value)
    if len(values) != 1:
        raise _refused(layer, f"{name} {value}")
    return values.pop()


def _refused(layer: nn.Module, what: str) -> NetworkSettingError:
    return NetworkSettingError(
        f"`network` has a layer {type(layer).__name__} with {what}, for which its halo cannot be computed; "
        "use the same whole number on every axis, nearest upsampling, and padding by zeros or edge values"
    )


def _convolution(outputs: Interval, reach: int, stride: int, padding: int) -> Interval:
    return outputs[0] * stride - padding, outputs[1] * stride - padding + reach


def _transposed(outputs: Interval, reach: int, stride: int, padding: int) -> Interval:
    # output o takes input i if o = i * stride - padding + j, 0 <= j <= reach
    return math.ceil((outputs[0] + padding - reach) / stride), (outputs[1] + padding) // stride


def _repeat(outputs: Interval, scale: int) -> Interval:
    return outputs[0] // scale, outputs[1] // scale


def _pad(outputs: Interval, before: int) -> Interval:
    return outputs[0] - before, outputs[1] - before


_PADS = (
    *(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
    *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
)
_LAYERS: dict[type, Callable[..., Interval]] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), _convolution),
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), _convolution),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _transposed),
    BlurredUpsample: _transposed,
    nn.Upsample: _repeat,
    **dict.fromkeys(_PADS, _pad),
}
_POINTWISE = (
    *(nn.Identity, nn.Dropout, nn.Dropout3d),
    *(nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.SiLU, nn.GELU, nn.Tanh, nn.Sigmoid),
)
_CONTAINERS = (
    *(nn.Sequential, nn.ModuleList, ADN, Convolution, UpSample),
    *(Encoder, Decoder, VQVAEResidualUnit),
)
