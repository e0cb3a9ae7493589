"""Finds the series of a folder tree and reads one as a CT volume.

A series is what lies in one folder under one SeriesInstanceUID; names, suffixes and instance numbers prove
nothing and are not used.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from monai.config import PathLike

from bundle.data.dicom.geometry import Geometry
from bundle.data.dicom.header import DicomError, DicomHeader, is_dicom, read_dicom_header
from bundle.data.dicom.screening import SKIPPED, Refusal, screen_series
from bundle.data.volumes.nifti import SUFFIXES
from bundle.run.files import MAX_FOLDERS, FolderError, files_in, walk_files
from bundle.run.names import ANY_NAME

# A path that stands for one series may be a folder above it, but not the root of a disk.
MAX_FOLDERS_OF_A_SERIES = 1000
# An index of other files; lies at the root of every CD.
DIRECTORY_CLASS = "1.2.840.10008.1.3.10"


class Series(NamedTuple):
    """One DICOM series of a folder.

    Attributes:
        path: what `read_volume` and `read_header` take: the folder if it holds no other volume, else the
            series' first file by name.
        files: its files; in slice order if it can be used, by name if not.
        patient: salted hash of the PatientID, empty if there is none.
        uid_hash: hash of the SeriesInstanceUID, 16 hexadecimal digits.
        reason: why it cannot be used, None if the headers give no reason.
        geometry: shape and affine, None if it cannot be used.
        has_contrast_tag: whether a contrast agent is named in it.
    """

    path: str
    files: tuple[str, ...]
    patient: str
    uid_hash: str
    reason: Refusal | None
    geometry: Geometry | None
    has_contrast_tag: bool

    @property
    def is_skipped(self) -> bool:
        """Whether it is no CT volume by nature, such as a localizer, rather than a damaged one."""
        return self.reason is not None and self.reason.code in SKIPPED


def find_series(folder: PathLike, max_folders: int = MAX_FOLDERS) -> list[Series]:
    """Finds the DICOM series below a folder; reads headers only.

    Args:
        folder: searched to its depth, hidden files left out, through links but never in circles.
        max_folders: how many folders may be looked at.

    Returns:
        all series, those that cannot be used too, sorted by path.

    Raises:
        FolderError: if there are more folders than that.
    """
    folders = walk_files(Path(folder), max_folders)
    found = [series for parent, paths in folders for series in series_in(parent, paths)]
    return sorted(found, key=lambda series: series.path)


def find_one_series(path: PathLike) -> Series:
    """The series that a path stands for.

    Args:
        path: a folder that holds one volume, itself or below; or any file of a series.

    Returns:
        the series, which may have a reason not to be used.

    Raises:
        DicomError: if there is no series, or if a folder holds several.
    """
    path = Path(path)
    if path.is_file():
        here = series_in(path.parent, files_in(path.parent) if path.parent.is_dir() else [path])
        found = [series for series in here if str(path) in series.files]
    else:
        here = series_in(path, files_in(path)) if path.is_dir() else []
        found = here or (_series_below(path) if path.is_dir() else [])
        found = [series for series in found if not series.is_skipped] or found
    if not found:
        raise DicomError(
            f"{path}: holds no DICOM series; give a folder of one or one of its files", "no_series"
        )
    if len(found) > 1:
        raise DicomError(
            f"{path}: holds {len(found)} series; give one file of the series that is meant, such as "
            f"{Path(found[0].files[0]).name}",
            "several_series",
        )
    return _renamed(found[0], path)


def _series_below(folder: Path) -> list[Series]:
    try:
        return find_series(folder, MAX_FOLDERS_OF_A_SERIES)
    except FolderError as error:
        raise DicomError(str(error), "several_series") from error


def series_in(folder: Path, paths: Iterable[Path]) -> list[Series]:
    """The series among the files of one folder; see `find_series`."""
    groups: dict[str, list[DicomHeader]] = {}
    strays: list[DicomHeader] = []
    for path in paths:
        if path.name.lower().endswith(SUFFIXES) or not is_dicom(path):
            continue
        header = read_dicom_header(path)
        if header.fault and not header.text("series_uid"):
            strays.append(header)
        elif header.storage_class != DIRECTORY_CLASS:
            # what does not tell its series stands alone
            groups.setdefault(header.text("series_uid") or f"\0{path}", []).append(header)
    found = [_screened(headers) for headers in groups.values()]
    if strays:
        found = _with_strays(found, list(groups.values()), strays)
    if sum(not series.is_skipped for series in found) == 1:
        found = [series if series.is_skipped else _renamed(series, folder) for series in found]
    return found


def _with_strays(
    found: Sequence[Series], groups: Sequence[list[DicomHeader]], strays: list[DicomHeader]
) -> list[Series]:
    """Damaged files may be of any series of their folder: without them it would be shorter in silence."""
    volumes = [headers for series, headers in zip(found, groups, strict=True) if not series.is_skipped]
    screened = [_screened([*headers, *strays]) for headers in volumes]
    skipped = [series for series in found if series.is_skipped]
    return skipped + (screened or [_screened([header]) for header in strays])


def _screened(headers: list[DicomHeader]) -> Series:
    path = headers[0].path
    geometry, refusal = screen_series(path, headers)
    order = geometry.order if geometry else range(len(headers))
    uid = headers[0].text("series_uid") or str(path)
    return Series(
        path=str(path),
        files=tuple(str(headers[index].path) for index in order),
        patient=next((header.text("patient") for header in headers if header.text("patient")), ""),
        uid_hash=hashlib.sha256(uid.encode(errors=ANY_NAME)).hexdigest()[:16],
        reason=refusal,
        geometry=geometry,
        has_contrast_tag=any(header.text("contrast_agent") for header in headers),
    )


def _renamed(series: Series, path: Path) -> Series:
    """The series under another path that stands for it."""
    reason = series.reason
    if reason:
        reason = reason._replace(message=f"{path}{reason.message[len(series.path) :]}")
    return series._replace(path=str(path), reason=reason)
