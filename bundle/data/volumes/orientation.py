"""Turns volumes into axes that point right, anterior, superior, and exactly back: no resampling."""

from collections.abc import Hashable

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation
from monai.utils import MetaKeys, convert_to_numpy

# nibabel's (axis, direction) rows of a volume that lies in RAS already
RAS = np.array([[0, 1], [1, 1], [2, 1]])


def to_ras(image: MetaTensor) -> MetaTensor:
    """Turns a volume (1, X, Y, Z) into the axes nearest to right, anterior, superior."""
    turned = Orientation(axcodes="RAS", labels=None)(image)
    assert isinstance(turned, MetaTensor)
    return turned


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
