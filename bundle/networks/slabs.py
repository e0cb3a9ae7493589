"""Runs layers over a volume slab by slab: the result is that of one pass, and nothing is computed twice.

Dimension letters: B batch, C channels, X Y Z voxels, n slices of a slab. A slab is a run of slices along X.
"""

from collections.abc import Callable, Iterable
from typing import Any, Protocol, Union

import torch
from monai.networks.blocks import ADN, Convolution
from monai.networks.nets.vqvae import VQVAEResidualUnit
from torch import Tensor, nn

from bundle.networks.decoder import BlurredUpsample
from bundle.networks.quantizer import NetworkSettingError

Layer = Union[nn.Module, Callable[[Tensor], Tensor], "InSlabs"]


class Slabs(Protocol):
    """Takes the slabs of one volume in their order, and gives the slices that are complete so far."""

    def __call__(self, slab: Tensor, is_last: bool) -> Tensor | None:
        """Takes the next slab; returns the next slices of the result, None if none is complete.

        With the last slab it returns all slices that are left.
        """


class InSlabs:
    """Runs a stack of layers over the slabs (B, C, n, Y, Z) of one volume; see `Slabs`.

    Tiles need a halo, in which everything is computed again for each of them. Here each layer keeps the few
    slices that it needs of the slabs before, so that a voxel costs the same in a volume of any length. It is
    for use without gradients.
    Paper: Paine et al. 2016, arXiv:1611.09482 (does the same along time).

    The volume must be a multiple of all strides together.

    Args:
        layers: run one after another. A layer must keep the number of slices, or divide or multiply it. A
            function must treat each position alone. The first must not be an activation: it works in place
            and would change the caller's slab.

    Raises:
        NetworkSettingError: if there is no rule here for a layer.
    """

    def __init__(self, layers: Iterable[Layer]) -> None:
        self.steps = [step for layer in layers for step in _steps(layer)]
        self.thickness = [0] * len(self.steps)  # slices that each step has been given at a time, at most

    def __call__(self, slab: Tensor, is_last: bool) -> Tensor | None:
        """Takes the next slab."""
        return self._run(slab, 0, is_last)

    def _run(self, slab: Tensor, first: int, is_last: bool) -> Tensor | None:
        """Runs the steps from `first` on.

        With the last slab each step gives the slices that it has held back too. Where they make it more than
        twice as thick as other slabs, it is cut, so that it needs at most about twice the memory.
        """
        features: Tensor | None = slab
        for at, step in enumerate(self.steps[first:], start=first):
            if features is None:
                break
            slices, usual = features.shape[-3], self.thickness[at]
            if is_last and 0 < 2 * usual < slices:
                parts = features.tensor_split(-(-slices // usual), dim=-3)
                results = [self._run(part, at, is_last=part is parts[-1]) for part in parts]
                return torch.cat([result for result in results if result is not None], dim=-3)
            if not is_last:
                self.thickness[at] = max(usual, slices)
            features = step(features, is_last)
        return features


class InFloat32(InSlabs):
    """Runs layers as `InSlabs` does, in float32 with autocast off."""

    def __call__(self, slab: Tensor, is_last: bool) -> Tensor | None:
        """Takes the next slab."""
        with torch.autocast(slab.device.type, enabled=False):
            return super().__call__(slab.float(), is_last)


class _Pointwise:
    """Keeps nothing."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def __call__(self, slab: Tensor, is_last: bool) -> Tensor:
        return self.function(slab)


class _Convolution:
    """Keeps the slices that the kernel reaches back to; zeros stand at both ends of the volume."""

    def __init__(self, layer: nn.Conv3d) -> None:
        self.layer = layer
        self.kernel, self.stride, self.padding = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
        self.kept: Tensor | None = None

    def __call__(self, slab: Tensor, is_last: bool) -> Tensor | None:
        layer = self.layer
        slices = slab if self.kept is None or self.kernel == 1 else torch.cat([self.kept, slab], dim=2)
        slices = _with_zeros(slices, self.padding * (self.kept is None), self.padding * is_last)
        count = max((slices.shape[2] - self.kernel) // self.stride + 1, 0)
        self.kept = slices[:, :, count * self.stride :].clone()
        if count == 0:
            return None
        slices = slices[:, :, : (count - 1) * self.stride + self.kernel]
        padding = (0, *map(int, layer.padding[1:]))
        return nn.functional.conv3d(
            slices, layer.weight, layer.bias, layer.stride, padding, layer.dilation, layer.groups
        )


class _Upsample:
    """Keeps its last slices, to which the next slab adds its share."""

    def __init__(self, layer: BlurredUpsample) -> None:
        self.layer, self.kernel = layer, layer.kernel()
        self.n_shared = layer.kernel_size - layer.stride
        self.kept: Tensor | None = None

    def __call__(self, slab: Tensor, is_last: bool) -> Tensor:
        stride, padding, bias = self.layer.stride, self.layer.padding, self.layer.bias
        slices = nn.functional.conv_transpose3d(
            slab, self.kernel, bias, stride=stride, padding=(0, padding, padding)
        )
        if self.kept is None:
            slices = slices[:, :, padding:]
        else:
            slices[:, :, : self.n_shared] += self.kept
        if is_last:
            return slices[:, :, :-padding]
        self.kept = slices[:, :, -self.n_shared :] - bias.to(slices)[:, None, None, None]
        return slices[:, :, : -self.n_shared]


class _ResidualUnit:
    """Keeps its input until the convolutions have made what is added to it."""

    def __init__(self, layer: VQVAEResidualUnit) -> None:
        self.convolutions = InSlabs([layer.conv1, layer.conv2])
        self.kept: Tensor | None = None

    def __call__(self, slab: Tensor, is_last: bool) -> Tensor | None:
        added = self.convolutions(slab, is_last)
        inputs = slab if self.kept is None else torch.cat([self.kept, slab], dim=2)
        count = 0 if added is None else added.shape[2]
        self.kept = inputs[:, :, count:].clone()
        return None if added is None else added.add_(inputs[:, :, :count]).relu_()


def _with_zeros(slices: Tensor, before: int = 0, after: int = 0) -> Tensor:
    """Adds slices of zeros, and keeps channels last in memory, which joining with new zeros would undo."""
    return nn.functional.pad(slices, (0, 0, 0, 0, before, after)) if before or after else slices


def _steps(layer: Any) -> list[Slabs]:
    kind = type(layer)  # a subclass may do more than its parent
    if kind in _CONTAINERS:
        return [step for child in layer.children() for step in _steps(child)]
    if kind in _STEPS and (kind is not nn.Conv3d or _keeps_proportion(layer)):
        return [_STEPS[kind](layer)]
    if kind in _NOTHING_TO_DO:
        return []
    if isinstance(layer, InSlabs):
        return [layer]
    if not isinstance(layer, nn.Module):
        return [_Pointwise(layer)]
    raise NetworkSettingError(
        f"`network` has a layer {kind.__name__} that cannot be run in slabs; give a `tile_size`, or add a "
        "rule for the layer to bundle/networks/slabs.py"
    )


def _keeps_proportion(layer: Any) -> bool:
    """Tells whether n slices give n / stride, the last of which needs the end of the volume."""
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str) or layer.dilation[0] != 1:
        return False
    return layer.kernel_size[0] == layer.stride[0] + 2 * layer.padding[0]


_STEPS: dict[type, Callable[[Any], Slabs]] = {
    nn.Conv3d: _Convolution,
    BlurredUpsample: _Upsample,
    VQVAEResidualUnit: _ResidualUnit,
    nn.ReLU: lambda _: _Pointwise(torch.relu_),  # in place, since a layer before has made its input
}
_CONTAINERS = (nn.Sequential, nn.ModuleList, Convolution, ADN)
_NOTHING_TO_DO = (nn.Identity, nn.Dropout, nn.Dropout3d)
