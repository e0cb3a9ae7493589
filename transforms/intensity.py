"""Maps an HU window to the network range [-1, 1] and back; whole HU come back exactly."""

import logging
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.engines import PrepareBatch
from monai.transforms import MapTransform
from monai.utils import CommonKeys, ImageMetaKey, convert_to_tensor

from bundle.data.store.body import STEP, Outside, count_in_body
from bundle.data.volumes.window import is_finite, to_network_range, to_whole_hu
from bundle.run.rules import check

logger = logging.getLogger(__name__)


class HUWindowd(MapTransform):
    """Holds the window that both directions share.

    Args:
        keys: items to transform.
        hu_min: lower end of the window in HU, becomes -1.
        hu_max: upper end in HU, becomes 1.
        allow_missing_keys: see `monai.transforms.MapTransform`.

    Raises:
        SettingsError: if `hu_min` is not below `hu_max`, or if the window does not fit int16.
    """

    def __init__(
        self,
        keys: KeysCollection,
        hu_min: float = -1000,
        hu_max: float = 1000,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        check(hu_min=hu_min, hu_max=hu_max)
        self.hu_min, self.hu_max = hu_min, hu_max


class ScaleHUWindowd(HUWindowd):
    """Turns HU into [-1, 1], float32, clipped, and logs how many voxels of a file were clipped.

    Tensors without a file name in their metadata are not counted; the store has counted its patches. The
    result is the only float32 copy.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Windows each item, (C, X, Y, Z) in HU of any numeric type."""
        scaled = dict(data)
        for key in self.key_iterator(scaled):
            image = convert_to_tensor(scaled[key], track_meta=isinstance(scaled[key], MetaTensor))
            self._log_clipped(image)
            scaled[key] = _like(to_network_range(_plain(image), self.hu_min, self.hu_max), image)
        return scaled

    def _log_clipped(self, image: torch.Tensor) -> None:
        name = _file_name(image)
        if not name or not logger.isEnabledFor(logging.INFO):
            return
        n_below = int(torch.count_nonzero(_plain(image) < self.hu_min))
        n_above = int(torch.count_nonzero(_plain(image) > self.hu_max))
        in_body = (0, 0, 0)
        if image.ndim == 4:
            samples = _plain(image)[0, ::STEP, ::STEP, ::STEP].cpu().numpy()
            in_body = count_in_body(samples, self.hu_min, self.hu_max)
        outside = Outside(n_below, n_above, *in_body)
        logger.info("%s: %s are clipped", name, outside.told(image.numel(), self.hu_min, self.hu_max))


class PrepareHUBatch(PrepareBatch):
    """Turns batches in HU into network input, on the device that trains.

    Readers hand over int16 HU, and the device scales them at almost no cost. In a reading process this would
    take half of its time and twice the shared memory.

    Args:
        scale: the preprocessing of a volume, `ScaleHUWindowd`.
    """

    def __init__(self, scale: ScaleHUWindowd) -> None:
        self.scale = scale

    def __call__(
        self,
        batchdata: dict[str, torch.Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns images (B, 1, X, Y, Z) float32 in [-1, 1] on `device`, as input and as target."""
        image = _plain(batchdata[CommonKeys.IMAGE]).to(device, non_blocking=non_blocking)
        scaled = self.scale({CommonKeys.IMAGE: image})[CommonKeys.IMAGE]
        return scaled, scaled


class InverseHUWindowd(HUWindowd):
    """Turns the network range into whole HU, int16, clipped to the window; metadata are kept.

    Rounding is done here and not by the writer, since MONAI Label has its own writer.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Turns each item, (C, X, Y, Z) of about [-1, 1] and any floating type, into HU.

        Raises:
            ValueError: if a value is NaN or infinite.
        """
        restored = dict(data)
        for key in self.key_iterator(restored):
            pred = convert_to_tensor(restored[key], track_meta=isinstance(restored[key], MetaTensor))
            if not is_finite(_plain(pred)):
                raise ValueError(
                    f"{_file_name(pred) or key}: the network's output must be finite, got NaN or infinite "
                    "values; try `--amp false` or another checkpoint"
                )
            restored[key] = _like(to_whole_hu(_plain(pred), self.hu_min, self.hu_max), pred)
        return restored


def _plain(image: torch.Tensor) -> torch.Tensor:
    return image.as_tensor() if isinstance(image, MetaTensor) else image


def _like(voxels: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Returns `voxels` with the metadata of `image`."""
    if not isinstance(image, MetaTensor):
        return voxels
    return MetaTensor(voxels, meta=image.meta, applied_operations=image.applied_operations)


def _file_name(image: torch.Tensor) -> str:
    return str(image.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "")) if isinstance(image, MetaTensor) else ""
