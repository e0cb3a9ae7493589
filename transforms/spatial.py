"""The one orientation that the network sees, and the way back to the file's own."""

from collections.abc import Hashable, Mapping
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Orientationd
from monai.utils import MetaKeys
from torch import Tensor


class OrientRASd(Orientationd):
    """Flips and permutes axes to the RAS that is closest; never resamples.

    Args:
        keys: keys of MetaTensors (1, X, Y, Z).
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys=keys, axcodes="RAS", labels=None)


class RestoreOrientationd(MapTransform):
    """Undoes `OrientRASd` on a prediction and gives it the original file's affine, bit for bit.

    Works from the affines alone, so that it needs neither the prediction's own metadata nor the list of applied
    transforms. A product of affines, as `Invertd` makes it, would differ in the last bits.

    Args:
        keys: keys of tensors (1, X, Y, Z) in RAS.
        orig_keys: for each of them, the key of the image that `OrientRASd` has seen.
    """

    def __init__(self, keys: KeysCollection, orig_keys: KeysCollection) -> None:
        super().__init__(keys)
        self.orig_keys = (orig_keys,) if isinstance(orig_keys, str) else tuple(orig_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Puts every key back on the grid of its file."""
        result = dict(data)
        for key, orig_key in self.key_iterator(result, self.orig_keys):
            meta = result[orig_key].meta
            affine = torch.as_tensor(meta[MetaKeys.ORIGINAL_AFFINE], dtype=torch.float64)
            voxels = _from_ras(torch.as_tensor(result[key]).as_subclass(Tensor), affine.numpy())
            result[key] = MetaTensor(voxels, affine=affine, meta={**meta, MetaKeys.AFFINE: affine})
        return result


def _from_ras(image: Tensor, affine: np.ndarray) -> Tensor:
    """Axes of `image` (1, X, Y, Z) from closest RAS to those of a file with `affine`."""
    ras_of_file_axis = nib.orientations.io_orientation(affine)
    order = [0, *(int(axis) + 1 for axis in ras_of_file_axis[:, 0])]
    flipped = [number + 1 for number, sign in enumerate(ras_of_file_axis[:, 1]) if sign < 0]
    return image.permute(order).flip(flipped)
