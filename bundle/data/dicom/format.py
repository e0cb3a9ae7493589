"""DICOM as a file format of volumes: a series is a folder, or any of its files."""

import os
from collections.abc import Iterable
from pathlib import Path

from bundle.data.dicom.header import is_dicom
from bundle.data.dicom.series import Series, find_one_series, series_in
from bundle.data.dicom.volume import read_series, read_series_header
from bundle.data.volumes.formats import Entry, Format, OnSlices, Volume, VolumeHeader


class DicomFormat(Format):
    """One series per volume. Headers decide which files belong together, file names do not."""

    described = "a DICOM series"
    suffixes = (".dcm", ".dicom", ".ima")

    def matches(self, path: Path) -> bool:
        """Tells whether a path is a folder, or a file that is DICOM."""
        return os.path.isdir(path) or (os.path.isfile(path) and is_dicom(path))

    def entries(self, folder: Path, files: Iterable[Path]) -> list[Entry]:
        """Groups files of one folder into series."""
        return [_entry(series) for series in series_in(folder, files)]

    def entry(self, path: Path) -> Entry:
        """Looks at the one series that a path stands for; DicomError if there are none or several."""
        return _entry(find_one_series(path))

    def read_header(self, path: Path) -> VolumeHeader:
        """Reads the header, see `bundle.data.dicom.volume.read_series_header`."""
        return read_series_header(path)

    def read(self, path: Path, on_slices: OnSlices) -> Volume:
        """Reads the voxels, see `bundle.data.dicom.volume.read_series`."""
        return Volume(*read_series(path))

    def source_files(self, path: Path) -> list[Path]:
        """Returns the path, and all files in its folder and below."""
        folder = path if path.is_dir() else path.parent
        return [path, *(file for file in sorted(folder.rglob("*")) if file.is_file())]

    def has_contrast_tag(self, path: Path) -> bool:
        """Tells whether a contrast agent is named in a header."""
        return find_one_series(path).has_contrast_tag


def _entry(series: Series) -> Entry:
    reason = (series.reason.code, series.reason.message) if series.reason else None
    return Entry(series.path, True, reason, series.is_skipped, series.patient, series.uid_hash)
