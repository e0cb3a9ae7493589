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

    def __call__(self, slab: Tensor) -> Tensor | None:
        """Takes the next slab; returns the next slices of the result, None if none is complete."""

    def end(self) -> Tensor | None:
        """Returns the last slices, which had to wait for the end of the volume."""


class InSlabs:
    """Runs a stack of layers over the slabs (B, C, n, Y, Z) of one volume; see `Slabs`.

    Tiles need a halo, in which everything is computed again for each of them. Here each layer keeps the few
    slices that it needs of the slabs before, so that a voxel costs the same in a volume of any length. It is
    for use without gradients.
    Paper: Paine et al. 2016, arXiv:1611.09482 (does the same along time).

    Args:
        layers: run one after another. A layer must keep the number of slices, or divide or multiply it. A
            function must treat each position alone. The first must not be an activation: it works in place
            and would change the caller's slab.

    Raises:
        NetworkSettingError: if there is no rule here for a layer.
    """

    def __init__(self, layers: Iterable[Layer]) -> None:
        self.steps = [step for layer in layers for step in _steps(layer)]

    def __call__(self, slab: Tensor) -> Tensor | None:
        """Takes the next slab."""
        return self._run(slab, self.steps)

    def end(self) -> Tensor | None:
        """Ends one layer after another, so that only a few slices are on their way at a time."""
        rests = [self._run(step.end(), self.steps[at:]) for at, step in enumerate(self.steps, start=1)]
        found = [rest for rest in rests if rest is not None]
        return torch.cat(found, dim=-3) if found else None

    @staticmethod
    def _run(slab: Tensor | None, steps: list[Slabs]) -> Tensor | None:
        for step in steps:
            if slab is None:
                break
            slab = step(slab)
        return slab


class InFloat32(InSlabs):
    """Runs layers as `InSlabs` does, in float32 with autocast off."""

    device_type = "cpu"

    def __call__(self, slab: Tensor) -> Tensor | None:
        """Takes the next slab."""
        self.device_type = slab.device.type
        with torch.autocast(self.device_type, enabled=False):
            return super().__call__(slab.float())

    def end(self) -> Tensor | None:
        """Ends the layers."""
        with torch.autocast(self.device_type, enabled=False):
            return super().end()


class _Pointwise:
    """Keeps nothing."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def __call__(self, slab: Tensor) -> Tensor:
        return self.function(slab)

    def end(self) -> None:
        return None


class _Convolution:
    """Keeps the slices that the kernel reaches back to; zeros stand at both ends of the volume."""

    def __init__(self, layer: nn.Conv3d) -> None:
        self.layer = layer
        self.kernel, self.stride, self.padding = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
        self.kept: Tensor | None = None

    def __call__(self, slab: Tensor) -> Tensor | None:
        if self.kept is None:
            return self._convolve(_with_zeros(slab, before=self.padding))
        return self._convolve(torch.cat([self.kept, slab], dim=2) if self.kernel > 1 else slab)

    def end(self) -> Tensor | None:
        if self.kept is None or not self.padding:
            return None
        return self._convolve(_with_zeros(self.kept, after=self.padding))

    def _convolve(self, slices: Tensor) -> Tensor | None:
        layer, count = self.layer, (slices.shape[2] - self.kernel) // self.stride + 1
        self.kept = slices[:, :, max(count, 0) * self.stride :].clone()
        if count < 1:
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

    def __call__(self, slab: Tensor) -> Tensor:
        stride, padding = self.layer.stride, self.layer.padding
        slices = nn.functional.conv_transpose3d(
            slab, self.kernel, stride=stride, padding=(0, padding, padding)
        )
        if self.kept is None:
            slices = slices[:, :, padding:]
        else:
            slices[:, :, : self.n_shared] += self.kept
        self.kept = slices[:, :, -self.n_shared :].clone()
        return self._with_bias(slices[:, :, : -self.n_shared])

    def end(self) -> Tensor | None:
        return None if self.kept is None else self._with_bias(self.kept[:, :, : -self.layer.padding])

    def _with_bias(self, slices: Tensor) -> Tensor:
        return slices.add_(self.layer.bias.to(slices)[:, None, None, None])


class _ResidualUnit:
    """Keeps its input until the convolutions have made what is added to it."""

    def __init__(self, layer: VQVAEResidualUnit) -> None:
        self.convolutions = InSlabs([layer.conv1, layer.conv2])
        self.kept: Tensor | None = None

    def __call__(self, slab: Tensor) -> Tensor | None:
        added = self.convolutions(slab)
        inputs = slab if self.kept is None else torch.cat([self.kept, slab], dim=2)
        count = 0 if added is None else added.shape[2]
        self.kept = inputs[:, :, count:].clone()
        return None if added is None else added.add_(inputs[:, :, :count]).relu_()

    def end(self) -> Tensor | None:
        added = self.convolutions.end()
        return None if added is None or self.kept is None else added.add_(self.kept).relu_()


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
