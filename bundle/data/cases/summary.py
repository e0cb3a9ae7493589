"""Sums up a volume before training: geometry, HU, padding, contrast, usable or not."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.config import PathLike

from bundle.data.dicom.screening import Refusal, smaller_than_a_patch
from bundle.data.store.body import STEP, find_body
from bundle.data.store.vessels import Vessels, find_vessels
from bundle.data.volumes.formats import VolumeError, required_format
from bundle.data.volumes.geometry import tilt_degrees
from bundle.data.volumes.reading import Volume, read_volume
from bundle.data.volumes.values import Values

PADDING_HU = -1024


@dataclass(frozen=True)
class VolumeSummary:
    """Holds one row of `scripts.inspect`; figures are None or 0 where the volume could not be read.

    Attributes:
        path: file or folder.
        is_usable: whether it can be trained on.
        code: reason of the refusal as a word for programs; empty if the volume is usable.
        message: the reason for a person.
        shape: (X, Y, Z) in voxels.
        spacing_mm: edges of a voxel.
        axes: directions of the axes, such as LPS.
        hu_range: lowest and highest HU.
        padding_share: share of voxels below -1024 HU.
        contrast_share: share of the tissue between the lungs that the largest evenly bright part takes.
        is_contrast_seen: whether filled vessels were found, as for `vessel_ratio`.
        has_contrast_tag: whether the DICOM header names a contrast agent.
        tilt_degrees: angle between the third axis and the normal of the other two, as of a tilted gantry.
        doubt: why its values are probably not HU; empty if they may be.
        notes: what else is odd about its header.
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
    doubt: str = ""
    notes: str = ""


def summarise_volume(path: PathLike, patch_size: Sequence[int] | None = None) -> VolumeSummary:
    """Reads a volume and sums it up; one that cannot be used gets a row too, not an error.

    Args:
        path: see `bundle.data.volumes.reading.read_volume`.
        patch_size: (X, Y, Z) that must fit into it; None = any.
    """
    try:
        found = required_format(path)
        has_tag = found.has_contrast_tag(Path(path))
        notes = found.read_header(Path(path)).notes
        volume = read_volume(path)
    except VolumeError as error:
        return VolumeSummary(str(path), False, error.code, str(error))
    voxels = volume.voxels
    values = Values()
    for slab in np.moveaxis(voxels, -1, 0):
        values.add(slab)
    refusal = smaller_than_a_patch(Path(path), voxels.shape, patch_size) if patch_size else None
    is_mask = values.is_mask and not found.is_prepared  # a prepared volume was judged before rounding
    if is_mask:
        refusal = Refusal("mask", values.refusal(path))
    vessels = _vessels(volume)
    return VolumeSummary(
        path=str(path),
        is_usable=refusal is None,
        code=refusal.code if refusal else "",
        message=refusal.message if refusal else "",
        shape=voxels.shape,
        spacing_mm=tuple(np.linalg.norm(volume.affine[:3, :3], axis=0).tolist()),
        axes="".join(nib.aff2axcodes(volume.affine)),
        hu_range=(values.minimum, values.maximum),
        padding_share=_share_below(voxels, PADDING_HU),
        contrast_share=vessels.lumen_share,
        is_contrast_seen=bool(vessels.is_filled.any()),
        has_contrast_tag=has_tag,
        tilt_degrees=tilt_degrees(volume.affine),
        doubt="" if is_mask else values.doubt,
        notes="; ".join(notes),
    )


def _vessels(volume: Volume) -> Vessels:
    """Finds vessels as the patch store does, on the same voxels."""
    orientation = nib.io_orientation(volume.affine)
    samples = nib.apply_orientation(volume.voxels, orientation)[::STEP, ::STEP, ::STEP]
    distances_mm = STEP * np.linalg.norm(volume.affine[:3, :3], axis=0)
    return find_vessels(samples, find_body(samples), distances_mm[np.argsort(orientation[:, 0])].tolist())


def _share_below(voxels: np.ndarray, hu: float) -> float:
    return sum(np.count_nonzero(slab < hu) for slab in np.moveaxis(voxels, -1, 0)) / voxels.size
