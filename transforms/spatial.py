"""Turns volumes into axes that point right, anterior, superior, and exactly back: no resampling."""

from collections.abc import Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Orientationd
from monai.utils import MetaKeys, convert_to_tensor, ensure_tuple_rep

from bundle.data.volumes.geometry import restore_orientation


class OrientRASd(Orientationd):
    """Turns a volume into the axes nearest to right, anterior, superior; training sees the same axes.

    Args:
        keys: items (1, X, Y, Z) with an affine.
        allow_missing_keys: see `monai.transforms.MapTransform`.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, axcodes="RAS", labels=None, allow_missing_keys=allow_missing_keys)


class RestoreOrientationd(MapTransform):
    """Turns a prediction into the axes of the file its input came from, and gives it that file's affine.

    It uses only the input's metadata, not recorded transforms. So it also works where a server wraps or drops
    transforms, and where the prediction is a plain tensor. The affine is exactly the file's; inverting the
    transforms would return a rounded product of matrices.

    Args:
        keys: predictions (1, X, Y, Z), on the grid of their input.
        orig_keys: inputs, MetaTensors with `affine` and `original_affine`; one for all keys or one each.
        allow_missing_keys: see `monai.transforms.MapTransform`.
    """

    def __init__(
        self, keys: KeysCollection, orig_keys: KeysCollection, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.orig_keys = ensure_tuple_rep(orig_keys, len(self.keys))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Restores each prediction.

        Raises:
            ValueError: if an input has no metadata, was resampled or cropped, or has another shape.
        """
        restored = dict(data)
        for key, orig_key in self.key_iterator(restored, self.orig_keys):
            image = restored[orig_key]
            if not isinstance(image, MetaTensor) or MetaKeys.ORIGINAL_AFFINE not in image.meta:
                raise ValueError(f"`{orig_key}` must hold `original_affine`; load it by LoadImageCTPAd")
            pred = convert_to_tensor(restored[key], track_meta=False)
            if pred.shape[1:] != image.shape[1:]:
                raise ValueError(
                    f"`{key}` must have the shape of `{orig_key}`, {tuple(image.shape[1:])}, "
                    f"got {tuple(pred.shape[1:])}; restore the orientation before any crop or resize"
                )
            restored[key] = restore_orientation(pred, image, orig_key)
        return restored
