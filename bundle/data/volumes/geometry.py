"""Checks where the voxels of a volume lie, and turns volumes into RAS axes and exactly back."""

from collections.abc import Hashable

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation
from monai.utils import MetaKeys, convert_to_numpy

# A smaller tilt comes from the rounding of positions.
TILT_DEGREES = 0.1
# Shortest and longest edge of a CT voxel; slices of 10 mm exist.
EDGES_MM = (0.05, 20.0)
# Largest relative difference between pixdim and affine that rounding to six digits explains.
EDGE_TOLERANCE = 1e-3
UNITS = {1: "metres", 3: "micrometres"}


def tilt_degrees(affine: np.ndarray) -> float:
    """Returns the angle between a volume's third axis and the normal of its slices; usually 0."""
    x, y, z = affine[:3, :3].T
    normal = np.cross(x, y)
    cosine = abs(float(normal @ z)) / float(np.linalg.norm(normal) * np.linalg.norm(z))
    return float(np.degrees(np.arccos(min(1.0, cosine))))


def tilt_note(degrees: float) -> str:
    """Says what a person must know about a tilted volume; empty up to 0.1 degrees, which is rounding."""
    if degrees <= TILT_DEGREES:
        return ""
    return (
        f"gantry tilt of {degrees:.1f} degrees: voxels stay as they are, the affine carries the shear "
        "(ITK-based viewers refuse such files)"
    )


def header_notes(header: nib.Nifti1Header, affine: np.ndarray, pixdim: np.ndarray) -> tuple[str, ...]:
    """Lists what is odd about the units and lengths of a NIfTI header.

    Args:
        header: of the file.
        affine: (4, 4), the one that is used.
        pixdim: lengths of a voxel's edges as the file states them, 3 numbers.
    """
    notes = []
    edges_mm = np.linalg.norm(affine[:3, :3], axis=0)
    unit = UNITS.get(int(header["xyzt_units"]) & 7)
    if unit:
        notes.append(f"its header says that lengths are in {unit}; they are taken as mm")
    if not ((edges_mm >= EDGES_MM[0]) & (edges_mm <= EDGES_MM[1])).all():
        notes.append(f"its voxel edges of {_lengths(edges_mm)} mm are unusual for a CT")
    if not np.allclose(pixdim, edges_mm, rtol=EDGE_TOLERANCE, atol=0):
        notes.append(
            f"its pixdim says {_lengths(pixdim)} where its affine says {_lengths(edges_mm)} mm; the affine "
            "is used, other programs may use pixdim"
        )
    return tuple(notes)


def _lengths(edges: np.ndarray) -> str:
    return " x ".join(f"{length:g}" for length in edges)


# nibabel's (axis, direction) rows for a volume that is already in RAS
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
