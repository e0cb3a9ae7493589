"""The HU window: from HU to the network's range and back."""

import logging
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ImageMetaKey
from torch import Tensor

logger = logging.getLogger(__name__)


class _HUWindowd(MapTransform):
    """What both directions share: the window and its rule."""

    def __init__(self, keys: KeysCollection, hu_min: float, hu_max: float) -> None:
        super().__init__(keys)
        if not hu_min < hu_max:
            raise ValueError(f"`hu_min` must be below `hu_max`, got {hu_min} and {hu_max} HU")
        self.hu_min, self.hu_max = float(hu_min), float(hu_max)


class ScaleHUWindowd(_HUWindowd):
    """HU to [-1, 1]; voxels outside the window are clipped, and whole volumes say in the log how many.

    Args:
        keys: keys of tensors (1, X, Y, Z) in HU.
        hu_min: becomes -1.
        hu_max: becomes 1.
        log_clipped: counts and logs the clipped voxels.
    """

    def __init__(self, keys: KeysCollection, hu_min: float, hu_max: float, log_clipped: bool = True) -> None:
        super().__init__(keys, hu_min, hu_max)
        self.log_clipped = log_clipped

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Float32 in place of HU; one copy of the volume at most."""
        result = dict(data)
        for key in self.key_iterator(result):
            image = torch.as_tensor(result[key])
            if self.log_clipped:
                self._log_clipped(image)
            scaled = image.as_subclass(Tensor).to(torch.float32, copy=True)
            scaled.clamp_(self.hu_min, self.hu_max).sub_(self.hu_min).mul_(
                2 / (self.hu_max - self.hu_min)
            ).sub_(1)
            result[key] = _with_metadata_of(image, scaled)
        return result

    def _log_clipped(self, image: Tensor) -> None:
        voxels = image.as_subclass(Tensor)
        below, above = int((voxels < self.hu_min).sum()), int((voxels > self.hu_max).sum())
        name = (
            image.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "volume")
            if isinstance(image, MetaTensor)
            else "volume"
        )
        logger.info(
            "%s: %d voxels (%.2f %%) below %g HU and %d (%.2f %%) above %g HU are clipped",
            name, below, 100 * below / voxels.numel(), self.hu_min,
            above, 100 * above / voxels.numel(), self.hu_max,
        )  # fmt: skip


class InverseHUWindowd(_HUWindowd):
    """The network's range to whole HU, int16, clipped to the window.

    Rounding is done here and not by the writer, because MONAI Label drops the writer.

    Args:
        keys: keys of tensors (1, X, Y, Z) in the network's range.
        hu_min: what -1 becomes.
        hu_max: what 1 becomes.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Int16 HU in place of the network's range; one float32 copy of the volume at most."""
        result = dict(data)
        for key in self.key_iterator(result):
            image = torch.as_tensor(result[key])
            hu = image.as_subclass(Tensor).to(torch.float32, copy=True)
            hu.add_(1).mul_((self.hu_max - self.hu_min) / 2).add_(self.hu_min).clamp_(
                self.hu_min, self.hu_max
            )
            result[key] = _with_metadata_of(image, hu.round_().to(torch.int16))
        return result


def _with_metadata_of(source: Tensor, values: Tensor) -> Tensor:
    if not isinstance(source, MetaTensor):
        return values
    return MetaTensor(values, meta=source.meta, applied_operations=source.applied_operations)
