"""What a person wants to know of a volume before training: geometry, HU, padding, contrast, usable or not."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.config import PathLike

from bundle.data.dicom import find_one_series
from bundle.data.dicom_volume import TILT_DEGREES
from bundle.data.header import is_series
from bundle.data.nifti import VolumeError
from bundle.data.screening import smaller_than_a_patch
from bundle.data.volume import Volume, read_volume

PADDING_HU = -1024
CONTRAST_HU = (150, 600)
# Of the voxels in the middle of the chest. LIDC-IDRI-0001, with contrast, has 20 %; three scans without it
# have 1 %, 2 % and, cut to the upper chest with its bones, 8 %.
CONTRAST_SHARE = 0.12


@dataclass(frozen=True)
class VolumeSummary:
    """One row of `scripts.inspect`; figures are None or 0 where the volume could not be read.

    Attributes:
        path: file or folder.
        is_usable: whether it can be trained on.
        code: reason of the refusal for a machine, empty if it is usable.
        message: the same for a person.
        shape: (X, Y, Z) in voxels.
        spacing_mm: edges of a voxel.
        axes: where the axes point to, such as LPS.
        hu_range: lowest and highest HU.
        padding_share: share of voxels below -1024 HU.
        contrast_share: share of voxels of 150 to 600 HU in the middle of the chest.
        is_contrast_seen: whether that share is that of filled vessels.
        has_contrast_tag: whether the DICOM header names a contrast agent.
        tilt_degrees: angle between the axes' third and the normal of the other two, as a gantry's.
    """

    path: str
    is_usable: bool
    code: str = ""
    message: str = ""
    shape: tuple[int, ...] | None = None
    spacing_mm: tuple[float, ...] | None = None
    axes: str = ""
    hu_range: tuple[float, float] | None = None
    padding_share: float = 0.0
    contrast_share: float = 0.0
    is_contrast_seen: bool = False
    has_contrast_tag: bool = False
    tilt_degrees: float = 0.0


def summarise_volume(path: PathLike, patch_size: Sequence[int] | None = None) -> VolumeSummary:
    """Reads a volume and sums it up; one that cannot be used is summed up too, not raised.

    Args:
        path: see `bundle.data.volume.read_volume`.
        patch_size: (X, Y, Z) that it must hold, None if it need not.
    """
    try:
        has_tag = is_series(Path(path)) and find_one_series(path).has_contrast_tag
        volume = read_volume(path)
    except VolumeError as error:
        return VolumeSummary(str(path), False, error.code, str(error))
    voxels = volume.voxels
    refusal = smaller_than_a_patch(Path(path), voxels.shape, patch_size) if patch_size else None
    share = central_contrast_share(volume)
    return VolumeSummary(
        path=str(path),
        is_usable=refusal is None,
        code=refusal.code if refusal else "",
        message=refusal.message if refusal else "",
        shape=voxels.shape,
        spacing_mm=tuple(np.linalg.norm(volume.affine[:3, :3], axis=0).tolist()),
        axes="".join(nib.aff2axcodes(volume.affine)),
        hu_range=(float(voxels.min()), float(voxels.max())),
        padding_share=_share(voxels, -np.inf, np.nextafter(np.float32(PADDING_HU), np.float32(-np.inf))),
        contrast_share=share,
        is_contrast_seen=share >= CONTRAST_SHARE,
        has_contrast_tag=has_tag,
        tilt_degrees=tilt_degrees(volume.affine),
    )


def tilt_degrees(affine: np.ndarray) -> float:
    """Angle between the third axis of a volume and the normal of its slices; 0 for most."""
    x, y, z = affine[:3, :3].T
    normal = np.cross(x, y)
    cosine = abs(float(normal @ z)) / float(np.linalg.norm(normal) * np.linalg.norm(z))
    return float(np.degrees(np.arccos(min(1.0, cosine))))


def tilt_note(degrees: float) -> str:
    """What a person must know of a tilted volume; empty below a tenth of a degree, which is rounding."""
    if degrees <= TILT_DEGREES:
        return ""
    return f"gantry tilt of {degrees:.1f} degrees: voxels stay as they are, the affine carries the shear"


def central_contrast_share(volume: Volume) -> float:
    """Share of voxels of 150 to 600 HU where heart and great vessels lie in a scan of the chest.

    The box is the middle third from left to right, the third before the spine from front to back, the middle
    half from feet to head; no anatomy is looked for.
    """
    orientation = nib.io_orientation(volume.affine)
    voxels = nib.apply_orientation(volume.voxels, orientation)
    extents = ((1 / 3, 2 / 3), (0.4, 0.75), (0.25, 0.75))
    box = tuple(
        slice(int(low * length), max(int(high * length), int(low * length) + 1))
        for (low, high), length in zip(extents, voxels.shape, strict=True)
    )
    return _share(voxels[box], *CONTRAST_HU)


def _share(voxels: np.ndarray, low: float, high: float) -> float:
    counts = [np.count_nonzero((slab >= low) & (slab <= high)) for slab in np.moveaxis(voxels, -1, 0)]
    return float(sum(counts)) / voxels.size
