"""Writes a stored volume back as NIfTI, in the axes and with the geometry of its source."""

from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import OrientationError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from bundle.data.store.file import UNREADABLE, Layout, StoreError, read_box, read_layout
from bundle.data.volumes.geometry import RAS
from bundle.data.volumes.header_text import header_from_text
from bundle.data.volumes.writing import CTWriter

# Exceptions that nibabel raises for impossible headers and orientations.
OF_NIBABEL = (AssertionError, AttributeError, HeaderDataError, WrapStructError, OrientationError)


def export_volume(path: Path, output: Path) -> None:
    """Writes a stored volume as int16 NIfTI in the axes and with the geometry of its source.

    Voxels equal the source's in HU, rounded to whole HU where the source held fractions.

    Args:
        path: file of the store.
        output: .nii or .nii.gz file to write.

    Raises:
        StoreError: if the file is damaged, or if `output` cannot be written.
        VolumeError: if `output` ends in neither .nii nor .nii.gz.
    """
    layout = read_layout(path)
    voxels = read_box(
        path, layout, (0, 0, 0), layout.shape, f"its source {str(layout.record.get('source_sha256'))[:16]}"
    )
    writer = CTWriter()
    try:
        back = nib.orientations.ornt_transform(RAS, np.array(layout.record["orientation"]))
        writer.set_data_array(nib.apply_orientation(voxels, back), channel_dim=None)
        writer.header = _export_header(layout)
        if writer.header.get_data_shape() != writer.data_obj.shape:
            raise ValueError("its header is of another shape")
    except (*UNREADABLE, *OF_NIBABEL) as error:
        raise StoreError(f"{path}: is damaged ({error}); delete it and prepare again") from error
    try:
        writer.write(output, verbose=False)
    except OSError as error:
        raise StoreError(
            f"{output}: cannot be written ({error.strerror or error}); give another OUT"
        ) from error


def _export_header(layout: Layout) -> nib.Nifti1Header:
    record = layout.record
    kept = record["source_header"], record["source_header_class"]
    header = header_from_text(*kept, endianness=record["source_byte_order"])
    header = header.as_byteswapped("<")
    header.set_data_dtype(np.int16)
    header.set_data_shape(record["source_shape"])
    header.set_slope_inter(1, 0)
    header["magic"] = header.single_magic
    header["vox_offset"] = header.single_vox_offset
    return header
