"""Writes a volume in HU as int16 NIfTI, with the geometry of the file or series that it was made from."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import NdarrayOrTensor, PathLike
from monai.data import ImageWriter
from monai.utils import ImageMetaKey, MetaKeys, convert_to_numpy

from bundle.data.volumes.formats import VolumeError, format_of, read_header, writable_suffixes
from bundle.data.volumes.header_text import header_from_text
from bundle.data.volumes.nifti import header_of_affine
from bundle.run.atomic import complete_or_absent

logger = logging.getLogger(__name__)

# All fields that place voxels in the patient. They are copied as stored, since converting them to a matrix
# and back rounds.
GEOMETRY_FIELDS = (
    *("sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"),
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)


class CTWriter(ImageWriter):
    """Writes int16 HU with the geometry of the input's header, and nothing else of that header.

    sform, qform, their codes, spacing and units equal the input's to the last bit; slope is 1, intercept 0.
    Description, calibration and header extensions may hold names and dates, so they are left out. The file
    appears under its name only when it is complete.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.header: nib.Nifti1Header = nib.Nifti1Header()
        self.source = Path()
        self.data_obj: Any = None

    def set_data_array(
        self, data_array: NdarrayOrTensor, channel_dim: int | None = 0, **options: Any
    ) -> None:
        """Takes the voxels.

        Args:
            data_array: whole HU, (1, X, Y, Z), any numeric type and device.
            channel_dim: axis of length 1 to drop; None if there is none.
            options: of other writers; ignored.

        Raises:
            ValueError: if it is not one 3D volume, or if a voxel does not fit int16.
        """
        voxels = convert_to_numpy(data_array)
        if channel_dim is not None and voxels.ndim == 4 and voxels.shape[channel_dim] == 1:
            voxels = voxels.squeeze(channel_dim)
        if voxels.ndim != 3:
            raise ValueError(
                f"`data_array` must be one volume (1, X, Y, Z), got the shape {data_array.shape}"
            )
        if voxels.dtype != np.int16:
            low, high = voxels.min(), voxels.max()
            # NaN fails this comparison
            if not (low >= np.iinfo(np.int16).min and high <= np.iinfo(np.int16).max):
                raise ValueError(f"`data_array` must fit int16, got values from {low} to {high} HU")
        self.data_obj = voxels

    def set_metadata(self, meta_dict: Mapping | None, **options: Any) -> None:
        """Takes the geometry of the source file if the data are on its grid, else that of the affine.

        Args:
            meta_dict: MONAI metadata. `filename_or_obj` names the source and `affine` places `data_array`;
                `nifti_header` and `nifti_header_class` (see `header_text`) replace the source.
            options: of other writers; ignored, since nothing is ever resampled.
        """
        meta = meta_dict or {}
        affine = meta.get(MetaKeys.AFFINE)
        affine = (
            np.eye(4) if affine is None else convert_to_numpy(torch.as_tensor(affine, dtype=torch.float64))
        )
        self.source = Path(str(meta.get(ImageMetaKey.FILENAME_OR_OBJ, "")))
        kept = meta.get("nifti_header")
        self.header = (
            header_from_text(kept, meta["nifti_header_class"], check=False)
            if kept
            else geometry_header(self.source, self.data_obj.shape, affine)
        )
        if self.header.get_data_shape() != self.data_obj.shape:
            raise VolumeError(
                f"{self.source}: its header says {self.header.get_data_shape()} voxels, its volume has "
                f"{self.data_obj.shape}; encode it again"
            )

    def write(self, filename: PathLike, verbose: bool = True, **kwargs: Any) -> None:
        """Writes the file, replacing an older result of the same name.

        Args:
            filename: path that ends in .nii or .nii.gz; its folder exists.
            verbose: whether to log the path.
            kwargs: of other writers; ignored.

        Raises:
            VolumeError: if the file is the source itself, or has another suffix.
        """
        path = Path(filename)
        written = format_of(path)
        if written is None or not written.is_writable:
            suffixes = " or ".join(reversed(writable_suffixes()))
            raise VolumeError(f"{path}: must end in {suffixes}; change the output's extension")
        if self.source.is_file() and path.exists() and os.path.samefile(path, self.source):
            raise VolumeError(f"{path}: is the input itself and will not be overwritten; change `output_dir`")
        with complete_or_absent(path) as unfinished, unfinished.open("xb") as file:
            written.write(file, path, self.header, self.data_obj)
        if verbose:
            logger.info("wrote %s", path)


def geometry_header(source: Path, shape: tuple[int, ...], affine: np.ndarray) -> nib.Nifti1Header:
    """Makes a header for int16 voxels of `shape`, with the source file's exact geometry or the affine's."""
    header: nib.Nifti1Header | None = None
    source_format = format_of(source) if source.is_file() else None
    if source_format is not None and source_format.is_writable:
        original = read_header(source)
        if original.shape == shape and np.array_equal(original.affine, affine):
            header = (
                nib.Nifti2Header() if isinstance(original.header, nib.Nifti2Header) else nib.Nifti1Header()
            )
            for field in GEOMETRY_FIELDS:
                header[field] = original.header[field]
            header["pixdim"][:4] = original.header["pixdim"][:4]
    if header is None:
        header = header_of_affine(affine, shape)
    header.set_data_dtype(np.int16)
    header.set_data_shape(shape)
    header.set_slope_inter(1, 0)
    header["magic"] = header.single_magic
    header["vox_offset"] = header.single_vox_offset
    return header
