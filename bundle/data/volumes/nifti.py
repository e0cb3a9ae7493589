"""Checks a NIfTI file by its header and its length, before anything large is allocated.

X, Y, Z are the axes of the file in nibabel's voxel order. Nothing here reorients.
"""

import gzip
import io
import logging
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import nibabel as nib
import numpy as np
from monai.config import PathLike
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from zlib_ng import zlib_ng

logger = logging.getLogger(__name__)

SUFFIXES = (".nii", ".nii.gz")
CHUNK_BYTES = 1 << 22
# deflate cannot pack better than this, so a header that declares more bytes lies.
MAX_GZIP_RATIO = 1032
# Cosine between two axes: what rounding of cosines to six digits leaves.
SHEAR_TOLERANCE = 1e-4
UNREADABLE: tuple[type[Exception], ...] = (
    *(ImageFileError, HeaderDataError, OSError, EOFError, ValueError, struct.error),
    *(zlib.error, cast(type[Exception], zlib_ng.error)),
)


class VolumeError(ValueError):
    """A file that cannot be used as a CT volume. The message begins with its path.

    Args:
        message: for a person.
        code: the reason for a machine, one word of `bundle.data.dicom.screening` or `unusable`.
    """

    def __init__(self, message: str, code: str = "unusable") -> None:
        super().__init__(message)
        self.code = code


class VolumeHeader(NamedTuple):
    """What is known of a volume before its voxels are read.

    Attributes:
        shape: (X, Y, Z), leading and trailing axes of 1 dropped.
        affine: (4, 4) float64, voxel to RAS millimetres.
        header: copy of the nibabel header, in the file's own byte order and NIfTI version; of a DICOM series
            one made of the affine.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    header: nib.Nifti1Header


def read_nifti_header(path: PathLike) -> VolumeHeader:
    """Checks a file by its header and its length, without reading its voxels.

    A .gz file is unpacked to its end only if its trailer contradicts the header.

    Args:
        path: .nii or .nii.gz file.

    Returns:
        shape, affine and header.

    Raises:
        VolumeError: if the file is missing, not NIfTI, truncated, 2D, of several volumes, in colour or
            complex, or if its affine is singular, NaN or infinite.
    """
    image = open_image(Path(path))
    return VolumeHeader(spatial_shape(image.shape), image.affine.copy(), image.header.copy())


def header_of_affine(affine: np.ndarray, shape: Sequence[int]) -> nib.Nifti1Header:
    """A header of int16 voxels that an affine alone places in the scanner.

    A qform cannot hold a shear: of a sheared affine it is left out, lest a program that prefers it shows the
    volume without.

    Args:
        affine: (4, 4) voxel to RAS millimetres.
        shape: (X, Y, Z).
    """
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(tuple(shape))
    header.set_xyzt_units("mm")
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    is_sheared = np.abs(axes.T @ axes - np.eye(3)).max() > SHEAR_TOLERANCE
    header.set_qform(affine, code="unknown" if is_sheared else "scanner", strip_shears=True)
    header.set_sform(affine, code="scanner")
    return header


def is_gzip(path: Path) -> bool:
    """Whether the file's name says that it is packed."""
    return path.name.lower().endswith(".gz")


def open_image(path: Path) -> nib.Nifti1Image:
    """Opens a NIfTI file and checks it without reading its voxels; see `read_nifti_header`."""
    if not os.path.isfile(path):  # unlike pathlib never an error, however long the name
        raise VolumeError(f"{path}: no such file; check the path")
    try:
        image = nib.load(path, mmap=False)
    except UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise VolumeError(
            f"{path}: is not a readable NIfTI file ({reason}); convert the scan again"
        ) from error
    if not isinstance(image, nib.Nifti1Image) or not path.name.lower().endswith(SUFFIXES):
        raise VolumeError(f"{path}: is not a .nii or .nii.gz file with one volume; convert it to NIfTI")
    _check_voxel_type(path, image.get_data_dtype())
    _check_shape(path, image.shape)
    _check_affine(path, image)
    try:
        _check_length(path, image.dataobj)
    except OSError as error:
        raise VolumeError(f"{path}: cannot be read ({error.strerror}); check it", "unreadable") from error
    return image


def _check_voxel_type(path: Path, dtype: np.dtype) -> None:
    if dtype.names:
        raise VolumeError(f"{path}: must hold one number per voxel, got RGB colours; convert the scan itself")
    if dtype.kind not in "iuf":
        raise VolumeError(f"{path}: must hold real numbers, got {dtype} voxels; give its real part as a file")


def spatial_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A file's shape without trailing and leading axes of 1, down to three axes."""
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    while len(shape) > 3 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _check_shape(path: Path, file_shape: tuple[int, ...]) -> None:
    shape = spatial_shape(file_shape)
    if len(shape) > 3:
        n_volumes = int(np.prod(shape[3:]))
        raise VolumeError(
            f"{path}: must hold one volume, got {n_volumes} (shape {shape}); give one file each"
        )
    if min(shape, default=0) < 1:
        raise VolumeError(f"{path}: declares the shape {shape}, which holds no voxel; convert the scan again")
    if len(shape) < 3 or min(shape) == 1:
        raise VolumeError(
            f"{path}: must hold a 3D volume, got the 2D shape {file_shape}; give all slices in one file"
        )


def _check_affine(path: Path, image: nib.Nifti1Image) -> None:
    axes = image.affine[:3, :3]
    if not np.isfinite(image.affine).all():
        raise VolumeError(f"{path}: its affine holds NaN or infinite numbers; convert the scan again")
    # The volume of the voxel against that of a box with its edges: free of units, 1 for orthogonal axes.
    edges_mm = np.linalg.norm(axes, axis=0)
    if abs(np.linalg.det(axes)) <= 1e-4 * np.prod(edges_mm):
        raise VolumeError(
            f"{path}: its affine is singular (voxel edges {edges_mm.tolist()} mm); convert the scan again"
        )
    if not image.header["sform_code"] and not image.header["qform_code"]:
        logger.warning("%s: states no orientation; its axes are taken as left, anterior, superior", path)


def _check_length(path: Path, proxy: Any) -> None:
    declared = int(proxy.offset) + int(np.prod([int(n) for n in proxy.shape])) * proxy.dtype.itemsize
    held = path.stat().st_size
    if is_gzip(path):
        if declared > held * MAX_GZIP_RATIO:
            raise VolumeError(
                f"{path}: its header declares {declared:,} bytes, more than {held:,} packed bytes can hold; "
                "convert the scan again"
            )
        held = declared if _gzip_trailer(path) == declared % (1 << 32) else _unpacked_bytes(path, declared)
    if held < declared:
        raise VolumeError(
            f"{path}: is truncated: its header declares {declared:,} bytes, it holds {held:,}; copy it again"
        )


def _gzip_trailer(path: Path) -> int:
    """Length modulo 2^32 that a gzip file states in its last four bytes."""
    with path.open("rb") as file:
        file.seek(-4, io.SEEK_END)
        return struct.unpack("<I", file.read(4))[0]


def _unpacked_bytes(path: Path, limit: int) -> int:
    """Bytes that can be unpacked, counted up to `limit`."""
    count = 0
    try:
        with gzip.open(path) as file:
            while count < limit and (chunk := file.read(CHUNK_BYTES)):
                count += len(chunk)
    except UNREADABLE:
        logger.debug("%s: unpacking stopped after %d bytes", path, count, exc_info=True)
    return count
