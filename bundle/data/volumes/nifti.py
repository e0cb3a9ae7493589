"""Reads and writes NIfTI; header and length are checked before anything large is allocated.

X, Y, Z are the axes of the file in nibabel's voxel order; nothing here reorients. Whether a file is packed is
decided by its first bytes, not by its name.
"""

import gzip
import io
import logging
import math
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import nibabel as nib
import numpy as np
from monai.config import PathLike
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from zlib_ng import zlib_ng

from bundle.data.volumes.formats import (
    Format,
    OnSlices,
    Volume,
    VolumeError,
    VolumeHeader,
    require_memory,
)
from bundle.data.volumes.geometry import header_notes
from bundle.data.volumes.unpacking import open_unpacked
from bundle.run.files import open_regular

logger = logging.getLogger(__name__)

SUFFIXES = (".nii", ".nii.gz")
CHUNK_BYTES = 1 << 22
# Deflate cannot pack better than this, so a header that declares more bytes is wrong.
MAX_GZIP_RATIO = 1032
# Largest cosine between two axes that rounding to six digits explains.
SHEAR_TOLERANCE = 1e-4
# No real header has more extensions.
MAX_HEADER_BYTES = 1 << 24
MIN_EXTENSION_BYTES, MAX_EXTENSION_CODE = 16, 64
# Level 1, nibabel's own: level 6 takes four times as long for 10 % less.
GZIP_LEVEL = 1
SLAB_Z = 32
# Exceptions that unpacking raises.
DAMAGED: tuple[type[Exception], ...] = (EOFError, zlib.error, cast(type[Exception], zlib_ng.error))
UNREADABLE: tuple[type[Exception], ...] = (
    *(ImageFileError, HeaderDataError, WrapStructError, OSError, ValueError, struct.error),
    *DAMAGED,
)


# A quaternion of unit length whose numbers were rounded to six digits may come out a little too long.
class _Nifti1(nib.Nifti1Header):
    quaternion_threshold = 1e-5  # type: ignore[assignment]


class _Nifti2(nib.Nifti2Header):
    quaternion_threshold = 1e-5  # type: ignore[assignment]


class NiftiFormat(Format):
    """One volume per .nii or .nii.gz file."""

    described = "a .nii or .nii.gz file"
    suffixes = (".nii.gz", ".nii")
    is_writable = True
    calls_on_slices = True

    def read_header(self, path: Path) -> VolumeHeader:
        """Checks a file by its header and its length.

        A packed file is unpacked completely only if its trailer contradicts the header.
        """
        return open_nifti(path).volume_header()

    def read(self, path: Path, on_slices: OnSlices) -> Volume:
        """Reads voxels in slabs of a few MB, so no file ever needs a float64 copy of the volume."""
        file = open_nifti(path)
        require_memory(path, file.shape, np.int16 if _is_exact(file) else np.float32)
        try:
            voxels, n_not_finite = _read_voxels(file, on_slices)
        except UNREADABLE as error:
            raise VolumeError(
                f"{path}: is truncated or damaged ({error}); copy or convert it again"
            ) from error
        if n_not_finite:
            raise VolumeError(
                f"{path}: holds {n_not_finite:,} NaN or infinite voxels; replace them, for instance by -1024"
            )
        header = file.volume_header()
        return Volume(voxels, header.affine, header.header)

    def write(self, file: BinaryIO, path: Path, header: nib.Nifti1Header, voxels: np.ndarray) -> None:
        """Writes header and voxels in slabs; equal input gives equal bytes."""
        packed = path.name.lower().endswith(".gz")
        stream: Any = gzip.GzipFile("", "wb", GZIP_LEVEL, file, mtime=0) if packed else file
        with stream:
            stream.write(header.binaryblock)
            stream.write(bytes(header.single_vox_offset - len(header.binaryblock)))
            for z in range(0, voxels.shape[2], SLAB_Z):
                slab = voxels[..., z : z + SLAB_Z]
                slab = slab if slab.dtype == np.int16 else np.rint(slab)
                stream.write(slab.astype("<i2", copy=False).tobytes(order="F"))

    def stored_ratio(self, path: Path) -> float:
        """Returns 2 for a packed file: a store packs less tightly than gzip, and far faster."""
        return 2.0 if path.name.lower().endswith(".gz") else 1.0


class NiftiFile(NamedTuple):
    """A NIfTI file whose header and length were checked.

    Attributes:
        path: the file.
        header: as stored, except for what nibabel repairs.
        pixdim: lengths of a voxel's edges as they are stored.
        affine: (4, 4) float64, voxel to RAS millimetres.
    """

    path: Path
    header: nib.Nifti1Header
    pixdim: np.ndarray
    affine: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns (X, Y, Z)."""
        return spatial_shape(self.header.get_data_shape())

    @property
    def dtype(self) -> np.dtype:
        """Returns the type of the stored voxels, in the file's byte order."""
        return self.header.get_data_dtype()

    @property
    def offset(self) -> int:
        """Returns the byte at which the voxels begin."""
        return self.header.get_data_offset()

    @property
    def scaling(self) -> tuple[float, float]:
        """Returns slope and intercept; 1 and 0 if there are none."""
        slope, intercept = self.header.get_slope_inter()
        return (1.0 if slope is None else slope), (0.0 if intercept is None else intercept)

    def volume_header(self) -> VolumeHeader:
        """Returns the header in the form that all formats share."""
        plain = nib.Nifti2Header if isinstance(self.header, nib.Nifti2Header) else nib.Nifti1Header
        header = plain(self.header.binaryblock, self.header.endianness, check=False)
        notes = header_notes(header, self.affine, self.pixdim)
        return VolumeHeader(self.shape, self.affine.copy(), header, notes)


def header_of_affine(affine: np.ndarray, shape: Sequence[int]) -> nib.Nifti1Header:
    """Makes a header for int16 voxels whose position is given by an affine alone.

    A qform cannot hold a shear. The header of a sheared affine has none, so that no program shows the volume
    unsheared.

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


def spatial_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns a file's shape without trailing and leading axes of 1, down to three axes."""
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    while len(shape) > 3 and shape[0] == 1:
        shape = shape[1:]
    return shape


def open_nifti(path: PathLike) -> NiftiFile:
    """Reads and checks a file without its voxels.

    Raises:
        VolumeError: if the file is missing, not NIfTI, truncated, 2D, of several volumes, in colour or
            complex, or if its affine is singular, NaN or infinite.
    """
    path = Path(path)
    if not os.path.isfile(path):  # unlike pathlib never an error, however long the name
        what = "is not a file" if os.path.exists(path) else "no such file"
        raise VolumeError(f"{path}: {what}; check the path")
    try:
        header, pixdim, n_layers = _read_header(path)
        affine = header.get_best_affine()
        header.get_slope_inter()  # raises for an intercept that is no number
    except DAMAGED as error:
        raise VolumeError(f"{path}: is truncated or damaged ({error}); copy or convert it again") from error
    except UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise VolumeError(
            f"{path}: is not a readable NIfTI file ({reason}); convert the scan again"
        ) from error
    file = NiftiFile(path, header, pixdim, affine)
    _check_voxel_type(path, file.dtype)
    _check_shape(path, header.get_data_shape())
    _check_affine(file)
    try:
        _check_length(file, n_layers)
    except OSError as error:
        raise VolumeError(f"{path}: cannot be read ({error.strerror}); check it", "unreadable") from error
    return file


def _read_header(path: Path) -> tuple[nib.Nifti1Header, np.ndarray, int]:
    """Reads the header, pixdim as stored, and how many times the file was packed."""
    stream, n_layers = open_unpacked(path)
    with stream:
        head = stream.read(_Nifti2.sizeof_hdr + 4 + 8)
        kind = _kind_of(head)
        header = kind(head[: kind.sizeof_hdr], check=False)
        pixdim = header["pixdim"][1:4].astype(np.float64)
        offset = header.get_data_offset()
        if not kind.single_vox_offset <= offset <= MAX_HEADER_BYTES:
            raise ValueError(f"its voxels cannot begin at byte {offset:,}, inside its header")
        head += stream.read(max(0, offset - len(head)))
    _check_extension(head, kind, header.endianness, offset)
    header = kind.from_fileobj(io.BytesIO(head[: max(offset, kind.sizeof_hdr + 4)]))
    if header["sform_code"] and header["qform_code"] and not header.get_sform()[:3, :3].any():
        header["sform_code"] = 0  # an sform of zeros: the quaternion is meant
    return header, pixdim, n_layers


def _kind_of(head: bytes) -> type[nib.Nifti1Header]:
    """Returns the class of a header by its length and its magic bytes."""
    for kind in (_Nifti1, _Nifti2):
        lengths = (struct.pack(order + "i", kind.sizeof_hdr) for order in "<>")
        place = 344 if kind is _Nifti1 else 4
        if head[:4] in lengths and len(head) >= kind.sizeof_hdr:
            if head[place:].startswith(kind.single_magic):
                return kind
            raise ValueError("it is one half of a header and image pair, or of an older format")
    raise ValueError("it does not begin with a NIfTI header")


def _check_extension(head: bytes, kind: type[nib.Nifti1Header], order: str, offset: int) -> None:
    """Refuses an offset inside the header's extensions; some programs always write the smallest one."""
    place = kind.sizeof_hdr + 4
    if not head[kind.sizeof_hdr : place].strip(b"\0"):
        return
    while place <= offset and place + 8 <= len(head):
        length, code = struct.unpack_from(f"{order}2i", head, place)
        # bytes of voxels rarely look like the beginning of an extension
        if length < MIN_EXTENSION_BYTES or length % 16 or not 0 <= code <= MAX_EXTENSION_CODE:
            return
        if place + length > offset:
            raise ValueError(f"its voxels cannot begin at byte {offset:,}, inside an extension of its header")
        place += length


def _check_voxel_type(path: Path, dtype: np.dtype) -> None:
    if dtype.names:
        raise VolumeError(f"{path}: must hold one number per voxel, got RGB colours; convert the scan itself")
    if dtype.kind not in "iuf":
        raise VolumeError(f"{path}: must hold real numbers, got {dtype} voxels; give its real part as a file")


def _check_shape(path: Path, file_shape: tuple[int, ...]) -> None:
    shape = spatial_shape(file_shape)
    if len(shape) > 3:
        n_volumes = math.prod(shape[3:])
        raise VolumeError(
            f"{path}: must hold one volume, got {n_volumes} (shape {shape}); give one file each"
        )
    if min(shape, default=0) < 1:
        raise VolumeError(f"{path}: declares the shape {shape}, which holds no voxel; convert the scan again")
    if len(shape) < 3 or min(shape) == 1:
        raise VolumeError(
            f"{path}: must hold a 3D volume, got the 2D shape {file_shape}; give all slices in one file"
        )


def _check_affine(file: NiftiFile) -> None:
    path, axes = file.path, file.affine[:3, :3]
    if not np.isfinite(file.affine).all():
        raise VolumeError(f"{path}: its affine holds NaN or infinite numbers; convert the scan again")
    # Volume of the voxel over that of a box with the same edges: without unit, 1 for orthogonal axes.
    edges_mm = np.linalg.norm(axes, axis=0)
    if abs(np.linalg.det(axes)) <= 1e-4 * np.prod(edges_mm):
        raise VolumeError(
            f"{path}: its affine is singular (voxel edges {edges_mm.tolist()} mm); convert the scan again"
        )
    if not file.header["sform_code"] and not file.header["qform_code"]:
        logger.warning("%s: states no orientation; its axes are taken as left, anterior, superior", path)


def _check_length(file: NiftiFile, n_layers: int) -> None:
    path = file.path
    declared = file.offset + math.prod(int(n) for n in file.header.get_data_shape()) * file.dtype.itemsize
    held = path.stat().st_size
    if n_layers:
        if declared > held * MAX_GZIP_RATIO**n_layers:
            raise VolumeError(
                f"{path}: its header declares {declared:,} bytes, more than {held:,} packed bytes can hold; "
                "convert the scan again"
            )
        is_confirmed = n_layers == 1 and _gzip_trailer(path) == declared % (1 << 32)
        held = declared if is_confirmed else _unpacked_bytes(path, declared)
    if held < declared:
        raise VolumeError(
            f"{path}: is truncated: its header declares {declared:,} bytes, it holds {held:,}; copy it again"
        )


def _gzip_trailer(path: Path) -> int:
    """Reads the length modulo 2^32 that a gzip file states in its last four bytes."""
    with open_regular(path) as file:
        file.seek(-4, io.SEEK_END)
        return struct.unpack("<I", file.read(4))[0]


def _unpacked_bytes(path: Path, limit: int) -> int:
    """Counts the bytes that unpacking gives, up to `limit`."""
    count = 0
    try:
        with open_unpacked(path)[0] as file:
            while count < limit and (chunk := file.read1(CHUNK_BYTES)):  # type: ignore[attr-defined]
                count += len(chunk)
    except UNREADABLE:
        logger.debug("%s: unpacking stopped after %d bytes", path, count, exc_info=True)
    return count


def _read_voxels(nifti: NiftiFile, on_slices: OnSlices) -> tuple[np.ndarray, int]:
    """Reads voxels in HU, Fortran order, and counts those that are NaN or infinite."""
    size_x, size_y, size_z = nifti.shape
    dtype, is_exact = nifti.dtype, _is_exact(nifti)
    slab_z = max(1, CHUNK_BYTES // (size_x * size_y * dtype.itemsize))
    voxels = np.empty(nifti.shape, np.int16 if is_exact else np.float32, order="F")
    is_direct = voxels.dtype == dtype and nifti.scaling == (1, 0)
    buffer = np.empty((size_x, size_y, 0 if is_direct else slab_z), dtype, order="F")
    n_not_finite = 0
    with open_unpacked(nifti.path)[0] as file:
        file.read(nifti.offset)
        for z in range(0, size_z, slab_z):
            slab = voxels[..., z : z + slab_z]
            raw = slab if is_direct else buffer[..., : slab.shape[2]]
            _fill(file, raw)
            slab_hu = _scale(raw, nifti.scaling, is_exact)
            if voxels.dtype == np.int16 and not _fits_int16(slab_hu):
                voxels = voxels.astype(np.float32)
            if not is_direct:
                voxels[..., z : z + slab_z] = slab_hu
            if slab_hu.dtype.kind == "f":
                n_not_finite += int(np.count_nonzero(~np.isfinite(slab_hu)))
            on_slices(voxels, z + slab.shape[2])
        while file.read(CHUNK_BYTES):  # gzip compares its checksum only at the end
            pass
    return voxels, n_not_finite


def _fill(file: Any, raw: np.ndarray) -> None:
    """Reads `raw`, Fortran-ordered, to its last byte."""
    view = raw.reshape(-1, order="F").view(np.uint8)
    while len(view):
        n_read = file.readinto(view)
        if not n_read:
            raise EOFError("the file ends before its last voxel")
        view = view[n_read:]


def _is_exact(nifti: NiftiFile) -> bool:
    """Tells whether HU are integers: integer voxels with integer slope and intercept."""
    return (
        nifti.dtype.kind in "iu"
        and nifti.dtype.itemsize <= 4
        and all(float(number).is_integer() and abs(number) < 1 << 30 for number in nifti.scaling)
    )


def _scale(raw: np.ndarray, scaling: tuple[float, float], is_exact: bool) -> np.ndarray:
    """Scales a slab to HU: integers where exact, else float32 rounded once."""
    slope, intercept = scaling
    if scaling != (1, 0):
        if is_exact:
            return raw.astype(np.int64) * int(slope) + int(intercept)
        raw = raw.astype(np.float64) * slope + intercept
    with np.errstate(over="ignore"):
        return raw if is_exact else raw.astype(np.float32, copy=False)


def _fits_int16(slab_hu: np.ndarray) -> bool:
    limits = np.iinfo(np.int16)
    return np.can_cast(slab_hu.dtype, np.int16) or (
        slab_hu.min() >= limits.min and slab_hu.max() <= limits.max
    )
