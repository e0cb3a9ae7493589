"""Reads one CT volume, NIfTI or DICOM: checked, in HU, without a copy larger than the volume itself."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from monai.config import PathLike
from monai.data import ImageReader, is_supported_format
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple
from zlib_ng import gzip_ng

from bundle.data.dicom.volume import read_series
from bundle.data.store.file import SUFFIX as STORE_SUFFIX
from bundle.data.store.file import read_box, read_layout
from bundle.data.volumes.formats import SUFFIXES, VolumeError, is_series, read_header
from bundle.data.volumes.nifti import CHUNK_BYTES, UNREADABLE, is_gzip, open_image, spatial_shape


class Volume(NamedTuple):
    """One CT volume.

    Attributes:
        voxels: (X, Y, Z) in HU, slope and intercept applied; int16 where that is exact, else float32.
        affine: (4, 4) float64, voxel to RAS millimetres.
        header: copy of the nibabel header; of a DICOM series one made of the affine.
    """

    voxels: np.ndarray
    affine: np.ndarray
    header: nib.Nifti1Header


def read_volume(path: PathLike, on_slices: Callable[[np.ndarray, int], object] | None = None) -> Volume:
    """Reads one CT volume.

    Voxels are read and converted in slabs of a few MB: a float64 or scaled file never needs a float64 copy.

    Args:
        path: .nii or .nii.gz file with one volume of real numbers, whose leading and trailing axes of 1 go;
            or a folder that holds one DICOM series, or any file of a series; or a file of the
            patch store, in RAS axes.
        on_slices: called while a NIfTI file is being read, with the voxels and how many slices of them are
            there, so that somebody else can go on with these; what is wrong with the file may show later.

    Returns:
        voxels in HU, affine and header.

    Raises:
        VolumeError: for everything that `read_header` refuses, for NaN or infinite voxels, for damage that
            only reading finds, and for a volume that does not fit into memory.
    """
    path = Path(path)
    try:
        return _read(path, on_slices)
    except MemoryError as error:
        size = " x ".join(map(str, read_header(path).shape))
        raise VolumeError(
            f"{path}: {size} voxels do not fit into the memory that is left; end other programs, read fewer "
            "volumes at a time (--num_workers) or take a machine with more",
            "out_of_memory",
        ) from error


def _read(path: Path, on_slices: Callable[[np.ndarray, int], object] | None) -> Volume:
    if path.suffix == STORE_SUFFIX:
        shape, affine, header = read_header(path)
        return Volume(
            read_box(path, read_layout(path), (0, 0, 0), shape, "given to `prepare`"), affine, header
        )
    if is_series(path):
        return Volume(*read_series(path))
    image = open_image(path)
    try:
        voxels, n_not_finite = _read_voxels(
            path, image.dataobj, spatial_shape(image.shape), on_slices or (lambda voxels, n_slices: None)
        )
    except UNREADABLE as error:
        raise VolumeError(f"{path}: is truncated or damaged ({error}); copy or convert it again") from error
    if n_not_finite:
        raise VolumeError(
            f"{path}: holds {n_not_finite:,} NaN or infinite voxels; replace them, for instance by -1024"
        )
    return Volume(voxels, image.affine.copy(), image.header.copy())


class CTReader(ImageReader):
    """`read_volume` as a MONAI reader: stricter than NibabelReader and without its float64 copies.

    The metadata hold the geometry and nothing that could name a patient.
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether it is a DICOM series, or its name ends in .nii or .nii.gz."""
        is_nifti = is_supported_format(filename, [suffix[1:] for suffix in (*SUFFIXES, STORE_SUFFIX)])
        return is_nifti or all(is_series(Path(path)) for path in ensure_tuple(filename))

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Volume:
        """Reads one file or series; see `read_volume`."""
        paths = ensure_tuple(data)
        if len(paths) != 1:
            raise VolumeError(
                f"{paths[0]}: is one of {len(paths)} files given as one image; give one file per image"
            )
        return read_volume(paths[0])

    def get_data(self, img: Volume) -> tuple[np.ndarray, dict]:
        """Voxels (X, Y, Z), in C order as MONAI wants them, and MONAI's metadata."""
        meta = {
            MetaKeys.AFFINE: img.affine.copy(),
            MetaKeys.ORIGINAL_AFFINE: img.affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.asarray(img.voxels.shape),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.ORIGINAL_CHANNEL_DIM: "no_channel",
        }
        return _c_order(img.voxels), meta


def _c_order(voxels: np.ndarray, block: int = 32) -> np.ndarray:
    """A copy in C order, by blocks of whole cache lines: three times as fast as `numpy.ascontiguousarray`."""
    copy = np.empty(voxels.shape, voxels.dtype)
    for x in range(0, voxels.shape[0], block):
        for z in range(0, voxels.shape[2], block):
            copy[x : x + block, :, z : z + block] = voxels[x : x + block, :, z : z + block]
    return copy


def _read_voxels(
    path: Path, proxy: Any, shape: tuple[int, ...], on_slices: Callable[[np.ndarray, int], object]
) -> tuple[np.ndarray, int]:
    """Voxels in HU, Fortran order, and how many of them are NaN or infinite."""
    size_x, size_y, size_z = shape
    slab_z = max(1, CHUNK_BYTES // (size_x * size_y * proxy.dtype.itemsize))
    voxels = np.empty(shape, np.int16 if _is_exact(proxy) else np.float32, order="F")
    is_direct = voxels.dtype == proxy.dtype and (proxy.slope, proxy.inter) == (1, 0)
    buffer = np.empty((size_x, size_y, 0 if is_direct else slab_z), proxy.dtype, order="F")
    n_not_finite = 0
    with gzip_ng.open(path) if is_gzip(path) else path.open("rb") as file:
        file.seek(proxy.offset)
        for z in range(0, size_z, slab_z):
            slab = voxels[..., z : z + slab_z]
            raw = slab if is_direct else buffer[..., : slab.shape[2]]
            _fill(file, raw)
            slab_hu = _scale(raw, proxy)
            if voxels.dtype == np.int16 and not _fits_int16(slab_hu):
                voxels = voxels.astype(np.float32)
            if not is_direct:
                voxels[..., z : z + slab_z] = slab_hu
            if slab_hu.dtype.kind == "f":
                n_not_finite += int(np.count_nonzero(~np.isfinite(slab_hu)))
            on_slices(voxels, z + slab.shape[2])
        while file.read(CHUNK_BYTES):  # gzip compares its checksum at the end only
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


def _is_exact(proxy: Any) -> bool:
    """Whether HU are integers: integer voxels with integer slope and intercept."""
    scaling = (float(proxy.slope), float(proxy.inter))
    return (
        proxy.dtype.kind in "iu"
        and proxy.dtype.itemsize <= 4
        and all(number.is_integer() and abs(number) < 1 << 30 for number in scaling)
    )


def _scale(raw: np.ndarray, proxy: Any) -> np.ndarray:
    """One slab in HU: integers where exact, else float32 rounded once."""
    if (proxy.slope, proxy.inter) != (1, 0):
        if _is_exact(proxy):
            return raw.astype(np.int64) * int(proxy.slope) + int(proxy.inter)
        raw = raw.astype(np.float64) * proxy.slope + proxy.inter
    with np.errstate(over="ignore"):
        return raw if _is_exact(proxy) else raw.astype(np.float32, copy=False)


def _fits_int16(slab_hu: np.ndarray) -> bool:
    limits = np.iinfo(np.int16)
    return np.can_cast(slab_hu.dtype, np.int16) or (
        slab_hu.min() >= limits.min and slab_hu.max() <= limits.max
    )
