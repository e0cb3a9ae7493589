"""Turns volumes into axes that point right, anterior, superior, and exactly back: no resampling."""

from collections.abc import Hashable, Mapping
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Orientationd
from monai.utils import MetaKeys, convert_to_numpy, convert_to_tensor, ensure_tuple_rep

# nibabel's (axis, direction) rows of a volume that lies in RAS already
RAS = np.array([[0, 1], [1, 1], [2, 1]])


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

    Works from the input's metadata alone, not from recorded transforms, so that it also works where a server
    wraps or drops transforms and where the prediction is a plain tensor. The affine is the file's, to the
    last bit; inverting the transforms would return a product of matrices.

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


def restore_orientation(pred: torch.Tensor, image: MetaTensor, name: Hashable) -> MetaTensor:
    """Returns a prediction (1, X, Y, Z) in the axes and with the affine of the file that `image` came from.

    Args:
        pred: on the grid of `image`.
        image: in its present axes, with `original_affine`.
        name: of the image, for messages.

    Raises:
        ValueError: if the image was resampled or cropped.
    """
    original_affine = torch.as_tensor(image.meta[MetaKeys.ORIGINAL_AFFINE], dtype=torch.float64)
    voxels = _reorient(pred, _orientation_back(image, original_affine, name))
    geometry = {
        MetaKeys.AFFINE: original_affine.clone(),
        MetaKeys.SPATIAL_SHAPE: np.asarray(voxels.shape[1:]),
    }
    return MetaTensor(voxels, meta={**image.meta, **geometry})


def _orientation_back(image: MetaTensor, original_affine: torch.Tensor, key: Hashable) -> np.ndarray:
    """Returns the nibabel orientation that turns the input's present axes into those of its file."""
    original, present = convert_to_numpy(original_affine), convert_to_numpy(image.affine)
    back = nib.orientations.ornt_transform(RAS, nib.io_orientation(original))
    for orientation in (back, RAS):  # RAS: the input was never reoriented
        if np.allclose(
            present @ nib.orientations.inv_ornt_aff(orientation, image.shape[1:]), original, atol=1e-3
        ):
            return orientation
    raise ValueError(f"`{key}` must lie on the grid of its file; reorient it by OrientRASd and nothing else")


def _reorient(image: torch.Tensor, orientation: np.ndarray) -> torch.Tensor:
    """Does for a tensor (1, X, Y, Z) what `nibabel.apply_orientation` does for an array."""
    flipped = [axis + 1 for axis, direction in enumerate(orientation[:, 1]) if direction < 0]
    order = np.argsort(orientation[:, 0]) + 1
    return image.flip(flipped).permute(0, *order.tolist())
