"""Writes a volume in HU as a DICOM series derived from the series it was made from."""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from monai.config import PathLike
from monai.utils import ImageMetaKey, MetaKeys, convert_to_numpy

from bundle.data.dicom.carried import put_elements
from bundle.data.dicom.derived import SERIES_DESCRIPTION, DerivedHeaders
from bundle.data.dicom.header import DicomError, is_dicom, read_dicom_header
from bundle.data.dicom.volume import usable_series
from bundle.data.volumes.formats import is_series
from bundle.data.volumes.nifti import VolumeError
from bundle.data.volumes.writing import SLAB_Z, CTWriter
from bundle.run.atomic import complete_or_absent_folder

logger = logging.getLogger(__name__)

GRID_TOLERANCE_MM = 1e-4
SLICE_NAME = re.compile(r"\d{4,}\.dcm")


class SeriesWriter(CTWriter):
    """Writes a folder of CT slices, int16 HU, that belong to the patient and the study of their source.

    What names patient and study, and all geometry, is the source's byte for byte (see
    `bundle.data.dicom.carried`); series, instances and their dates are new. Private elements and everything
    else of the source stay behind. The folder appears under its name only when it is complete.

    Args:
        derivation: how the voxels were made, for the DerivationDescription; ASCII, up to 1024 letters.
    """

    def __init__(self, derivation: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.derivation = derivation
        self.files: tuple[str, ...] = ()

    def set_metadata(self, meta_dict: Mapping | None, **options: Any) -> None:
        """Finds the source series and compares its grid with that of the voxels.

        Args:
            meta_dict: MONAI metadata; `filename_or_obj` names the source, `affine` places the voxels.
            options: of other writers, not needed here.

        Raises:
            VolumeError: if the source is no usable DICOM series, or the voxels lie on another grid.
        """
        meta = meta_dict or {}
        self.source = Path(str(meta.get(ImageMetaKey.FILENAME_OR_OBJ, "")))
        check_source(self.source)
        series, geometry = usable_series(self.source)
        affine = convert_to_numpy(torch.as_tensor(meta[MetaKeys.AFFINE], dtype=torch.float64))
        is_same = np.allclose(affine, geometry.affine, rtol=0, atol=GRID_TOLERANCE_MM)
        if self.data_obj.shape != geometry.shape or not is_same:
            raise DicomError(
                f"{self.source}: the result's {self.data_obj.shape} voxels do not lie on its grid of "
                f"{geometry.shape}; reorient it by RestoreOrientationd and nothing else"
            )
        self.files = series.files

    def write(self, filename: PathLike, verbose: bool = True, **kwargs: Any) -> None:
        """Writes the folder, replacing an older result of the same name.

        Args:
            filename: the folder; its parent exists.
            verbose: whether to log the path.
            kwargs: of other writers, not needed here.

        Raises:
            VolumeError: see `check_target`; or if it could not be written whole.
        """
        path = Path(filename)
        check_target(path, self.source)
        headers = DerivedHeaders(self.files, self.derivation)
        try:
            self._write(path, headers)
        except OSError as error:
            raise DicomError(
                f"{path}: cannot be written ({error.strerror or error}); make room or change `output_dir`"
            ) from error
        if verbose:
            logger.info("wrote %s, %d slices", path, len(self.files))

    def _write(self, path: Path, headers: DerivedHeaders) -> None:
        with complete_or_absent_folder(path) as unfinished, _opened(unfinished) as name:
            for number, slice_hu in enumerate(_slices(self.data_obj)):
                file = unfinished / f"{number + 1:04d}.dcm"
                _write_slice(file, f"{name}/{file.name}", slice_hu, headers.words_of(number))
                put_elements(file, headers.elements_of(number), slice_hu.astype("<i2").tobytes())


def check_source(source: Path) -> None:
    """Refuses what no series can be derived from.

    Raises:
        VolumeError: if it is no DICOM.
    """
    if not is_series(source):
        raise VolumeError(
            f"{source}: is no DICOM, so no DICOM series can be derived from it; give the series itself, or "
            "write NIfTI by --output_format nifti"
        )


def check_target(path: Path, source: Path) -> None:
    """Refuses to touch anything but an older result.

    Args:
        path: the folder to write.
        source: the volume that it is derived from.

    Raises:
        VolumeError: if the folder holds anything but such a result, or lies in the source's folder.
    """
    folder = source if source.is_dir() else source.parent
    if Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise VolumeError(
            f"{path}: lies in the folder of the input, where nothing is ever written; change `output_dir`"
        )
    if os.path.lexists(path) and not _is_result(path):
        raise VolumeError(
            f"{path}: holds something else than an earlier result and will not be overwritten; move it away, "
            "or change `output_dir`"
        )


def _is_result(path: Path) -> bool:
    """Whether a folder holds slices that this module wrote, and nothing beside."""
    if path.is_symlink() or not path.is_dir():
        return False
    return all(
        SLICE_NAME.fullmatch(file.name)
        and not file.is_symlink()
        and file.is_file()
        and is_dicom(file)
        and read_dicom_header(file).text("description") == SERIES_DESCRIPTION
        for file in path.iterdir()
    )


def _slices(voxels: np.ndarray) -> Iterator[np.ndarray]:
    """(rows, columns) int16 of each slice of (columns, rows, slices), turned by slabs that fit a cache."""
    for z in range(0, voxels.shape[2], SLAB_Z):
        slab = voxels[..., z : z + SLAB_Z]
        slab = slab if slab.dtype == np.int16 else np.rint(slab).astype(np.int16)
        yield from np.ascontiguousarray(slab.transpose(2, 1, 0))


@contextmanager
def _opened(folder: Path) -> Iterator[str]:
    """A name of a folder that C++ can be given: SimpleITK ends the process at one that is no UTF-8."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{opened}"
    finally:
        os.close(opened)


def _write_slice(file: Path, name: str, slice_hu: np.ndarray, words: Mapping[str, str]) -> None:
    """Writes a file, by another name of its, with voxels and words of our own."""
    image = sitk.GetImageFromArray(slice_hu[None])
    for tag, word in words.items():
        image.SetMetaData(tag, word)
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(name)
    try:
        writer.Execute(image)
    except RuntimeError as error:
        raise DicomError(f"{file}: SimpleITK could not write it; look whether the disk is full") from error
