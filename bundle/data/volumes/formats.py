"""The front door to headers: NIfTI files and DICOM series alike."""

import os
from pathlib import Path

import numpy as np
from monai.config import PathLike
from nibabel.spatialimages import HeaderDataError

from bundle.data.dicom.header import is_dicom
from bundle.data.dicom.volume import read_series_header
from bundle.data.store.file import SUFFIX as STORE_SUFFIX
from bundle.data.store.file import UNREADABLE, StoreError, read_layout
from bundle.data.volumes.nifti import SUFFIXES, VolumeError, VolumeHeader, header_of_affine, read_nifti_header

__all__ = ["SUFFIXES", "VolumeError", "VolumeHeader", "is_series", "read_header"]


def is_series(path: Path) -> bool:
    """Whether a path stands for a DICOM series: a folder, or a file that is DICOM."""
    is_file = os.path.isfile(path) and not path.name.lower().endswith(SUFFIXES)
    return os.path.isdir(path) or (is_file and is_dicom(path))


def read_header(path: PathLike) -> VolumeHeader:
    """Checks a volume by its header and its length, without reading its voxels.

    A .gz file is unpacked to its end only if its trailer contradicts the header.

    Args:
        path: .nii or .nii.gz file; or a folder that holds one DICOM series, or any file of a series;
            or a file of the patch store, in RAS axes.

    Returns:
        shape, affine and header.

    Raises:
        VolumeError: if the file is missing, not NIfTI, truncated, 2D, of several volumes, in colour or
            complex, or if its affine is singular, NaN or infinite; of DICOM, for everything that
            `bundle.data.dicom.screening` refuses.
        StoreError: if a file of the patch store is damaged.
    """
    path = Path(path)
    if path.suffix == STORE_SUFFIX:
        return _stored_header(path)
    return read_series_header(path) if is_series(path) else read_nifti_header(path)


def _stored_header(path: Path) -> VolumeHeader:
    layout = read_layout(path)
    try:
        affine = np.array(layout.record["affine"], np.float64)
        # written so that NaN fails it
        if affine.shape != (4, 4) or not 0 < abs(np.linalg.det(affine[:3, :3])) < np.inf:
            raise ValueError("its affine is wrong")
        return VolumeHeader(layout.shape, affine, header_of_affine(affine, layout.shape))
    except (*UNREADABLE, HeaderDataError, np.linalg.LinAlgError) as error:
        raise StoreError(f"{path}: is damaged ({error}); delete it and prepare again") from error
