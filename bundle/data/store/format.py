"""Offers the patch store as a file format of volumes."""

from pathlib import Path

import numpy as np
from nibabel.spatialimages import HeaderDataError

from bundle.data.store.file import NUMBERED, SUFFIX, UNREADABLE, StoreError, read_box, read_layout
from bundle.data.volumes.formats import Format, OnSlices, Volume, VolumeHeader, require_memory
from bundle.data.volumes.nifti import header_of_affine


class StoreFormat(Format):
    """Reads prepared volumes, in RAS axes; patches are read where they lie."""

    described = f"a {SUFFIX} file"
    suffixes = (SUFFIX,)
    is_prepared = True

    def read_header(self, path: Path) -> VolumeHeader:
        """Checks the record of a file; StoreError if it is damaged."""
        layout = read_layout(path)
        try:
            affine = np.array(layout.record["affine"], np.float64)
            # written so that NaN fails the test
            if affine.shape != (4, 4) or not 0 < abs(np.linalg.det(affine[:3, :3])) < np.inf:
                raise ValueError("its affine is wrong")
            return VolumeHeader(layout.shape, affine, header_of_affine(affine, layout.shape))
        except (*UNREADABLE, HeaderDataError, np.linalg.LinAlgError) as error:
            raise StoreError(f"{path}: is damaged ({error}); delete it and prepare again") from error

    def read(self, path: Path, on_slices: OnSlices) -> Volume:
        """Reads all cubes of a file; StoreError if one is damaged."""
        shape, affine, header, _ = self.read_header(path)
        require_memory(path, shape, np.int16)
        return Volume(
            read_box(path, read_layout(path), (0, 0, 0), shape, "given to `prepare`"), affine, header
        )

    def stored_ratio(self, path: Path) -> float:
        """Returns 0: patches are read where the file lies."""
        return 0.0

    def short_name(self, name: str) -> str:
        """Returns `volume_0001`, the number that `prepare` gave the file."""
        numbered = NUMBERED.fullmatch(name)
        return numbered[1] if numbered else super().short_name(name)
