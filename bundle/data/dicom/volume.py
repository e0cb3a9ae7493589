"""Reads one DICOM series into a volume in HU."""

import logging
from contextlib import closing
from functools import lru_cache

import nibabel as nib
import numpy as np
from monai.config import PathLike

from bundle.data.dicom.geometry import Geometry
from bundle.data.dicom.header import DicomError
from bundle.data.dicom.pixels import read_slices_hu
from bundle.data.dicom.series import Series, find_one_series
from bundle.data.volumes.formats import VolumeHeader, require_memory
from bundle.data.volumes.geometry import tilt_note
from bundle.data.volumes.nifti import header_of_affine

logger = logging.getLogger(__name__)

INT16 = np.iinfo(np.int16)


def read_series_header(path: PathLike) -> VolumeHeader:
    """Checks a DICOM series by its headers, without reading its pixels.

    Args:
        path: a folder that holds one series, or any file of a series.

    Returns:
        Shape, affine and a NIfTI header made from them.

    Raises:
        DicomError: for everything that `bundle.data.dicom.screening` refuses.
    """
    series, geometry = usable_series(path)
    return _header(series, geometry)


def read_series(path: PathLike) -> tuple[np.ndarray, np.ndarray, nib.Nifti1Header]:
    """Reads a DICOM series; see `read_series_header` for the path and what is refused.

    Returns:
        Voxels (X, Y, Z) = (columns, rows, slices) in HU by each file's own slope and intercept, int16 where
        that is exact, else float32; affine (4, 4), voxel to RAS mm; a NIfTI header made from the affine.
    """
    series, geometry = usable_series(path)
    header = _header(series, geometry)
    require_memory(path, geometry.shape, np.int16)
    voxels = np.empty(geometry.shape, np.int16, order="F")
    # closed after an error too, since a process that decodes compressed slices must not stay behind
    with closing(read_slices_hu(series.headers)) as slices:
        for z, slice_hu in enumerate(slices):
            if not np.isfinite(slice_hu).all():
                raise DicomError(
                    f"{series.files[z]}: holds NaN or infinite voxels; export it again", "damaged"
                )
            if voxels.dtype == np.int16 and not _is_int16(slice_hu):
                voxels = voxels.astype(np.float32)
            voxels[..., z] = slice_hu.T
    return voxels, geometry.affine.copy(), header.header


def usable_series(path: PathLike) -> tuple[Series, Geometry]:
    """Returns the series that a path stands for, its files in slice order, and where it lies.

    Raises:
        DicomError: for everything that `bundle.data.dicom.screening` refuses.
    """
    series = find_one_series(path)
    if series.reason or series.geometry is None:
        code, message = series.reason or ("damaged", f"{path}: cannot be used")
        raise DicomError(message, code)
    return series, series.geometry


def _header(series: Series, geometry: Geometry) -> VolumeHeader:
    for note in (tilt_note(geometry.tilt_degrees), *series.notes):
        if note:
            _warn(series.path, note)
    header = header_of_affine(geometry.affine, geometry.shape)
    return VolumeHeader(geometry.shape, geometry.affine.copy(), header, series.notes)


@lru_cache(maxsize=4096)
def _warn(path: str, note: str) -> None:
    """Warns once per series, since its header is read several times."""
    logger.warning("%s: %s", path, note)


def _is_int16(slice_hu: np.ndarray) -> bool:
    if slice_hu.min() < INT16.min or slice_hu.max() > INT16.max:
        return False
    return slice_hu.dtype.kind in "iu" or bool((np.rint(slice_hu) == slice_hu).all())
