"""Finds the series of a folder tree.

Files in one folder with the same SeriesInstanceUID are one series, and so are all files there without one.
File names, suffixes and instance numbers prove nothing and are not used.
"""

import hashlib
import mimetypes
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from monai.config import PathLike

from bundle.data.dicom.geometry import Geometry
from bundle.data.dicom.header import DicomError, DicomHeader, is_dicom, read_dicom_headers
from bundle.data.dicom.screening import SKIPPED, Refusal, screen_series, series_notes
from bundle.data.volumes.nifti import SUFFIXES
from bundle.run.files import MAX_FOLDERS, FolderError, files_in, walk_files
from bundle.run.names import ANY_NAME, counted, printable

# A folder that lies above a series may stand for it, but the root of a disk may not.
MAX_FOLDERS_OF_A_SERIES = 1000
# An index of other files, at the root of every CD.
DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
# Files that archives and viewers put beside slices, and that Python's list of file types does not know.
KNOWN_BESIDE = (".ctpa", ".db", ".inf", ".ini", ".log", ".lnk", ".md", ".nrrd", ".mhd", ".yaml", ".yml")
SHOWN_NAMES = 3


class Series(NamedTuple):
    """Describes one DICOM series of a folder.

    Attributes:
        path: the argument for `read_volume` and `read_header`: the folder if it holds no other volume, else
            the series' first file by name.
        files: the file of each slice; in slice order if it can be used, by name if not. All slices of
            an enhanced file name that file.
        patient: salted hash of the PatientID, empty if there is none.
        uid_hash: hash of the SeriesInstanceUID, 16 hexadecimal digits.
        study_hash: hash of the StudyInstanceUID, empty if there is none.
        reason: why it cannot be used; None if the headers give no reason.
        geometry: shape and affine, None if it cannot be used.
        has_contrast_tag: whether a contrast agent is named in it.
        notes: what a person should know about a series that can be used, a sentence each.
        headers: of the slices, in the order of `files`; empty in a list of all series of a tree.
    """

    path: str
    files: tuple[str, ...]
    patient: str
    uid_hash: str
    study_hash: str
    reason: Refusal | None
    geometry: Geometry | None
    has_contrast_tag: bool
    notes: tuple[str, ...] = ()
    headers: tuple[DicomHeader, ...] = ()

    @property
    def is_skipped(self) -> bool:
        """Tells whether it cannot be a CT volume, such as a localizer, rather than being damaged."""
        return self.reason is not None and self.reason.code in SKIPPED


def find_series(folder: PathLike, max_folders: int = MAX_FOLDERS) -> list[Series]:
    """Finds the DICOM series below a folder; reads headers only.

    Args:
        folder: searched with its subfolders; hidden files are left out; links are followed, never in circles.
        max_folders: how many folders may be looked at.

    Returns:
        All series, also those that cannot be used, sorted by path.

    Raises:
        FolderError: if there are more folders than that.
    """
    found = [series._replace(headers=()) for series in _series_below(Path(folder), max_folders)]
    return sorted(found, key=lambda series: series.path)


def _series_below(folder: Path, max_folders: int) -> Iterator[Series]:
    for parent, paths in walk_files(folder, max_folders):
        yield from series_in(parent, paths)


def find_one_series(path: PathLike) -> Series:
    """Returns the series that a path stands for.

    Args:
        path: a folder that holds one volume, itself or below; or any file of a series.

    Returns:
        The series, which may have a reason not to be used.

    Raises:
        DicomError: if there is no series, or if a folder holds several.
    """
    path = Path(path)
    if path.is_file():
        here = series_in(path.parent, files_in(path.parent) if path.parent.is_dir() else [path])
        found = [series for series in here if str(path) in series.files]
    else:
        here = series_in(path, files_in(path)) if path.is_dir() else []
        found = here or (_all_below(path) if path.is_dir() else [])
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


def _all_below(folder: Path) -> list[Series]:
    try:
        return list(_series_below(folder, MAX_FOLDERS_OF_A_SERIES))
    except FolderError as error:
        raise DicomError(str(error), "several_series") from error


def series_in(folder: Path, paths: Iterable[Path]) -> list[Series]:
    """Returns the series among the files of one folder; see `find_series`."""
    groups: dict[str, list[DicomHeader]] = {}
    strays: list[DicomHeader] = []
    unknown: list[Path] = []
    for path in paths:
        if path.name.lower().endswith(SUFFIXES):
            continue
        if not is_dicom(path):
            unknown.append(path)
            continue
        headers = read_dicom_headers(path)
        is_whole = headers[0].fault is None and headers[0].pixel_bytes is not None
        if not is_whole and not headers[0].text("series_uid"):
            strays += headers
        elif headers[0].storage_class != DIRECTORY_CLASS:
            groups.setdefault(headers[0].text("series_uid"), []).extend(headers)
    found = [_screened(group) for group in groups.values()]
    if strays:
        found = _with_strays(found, strays)
    found = [_noted(series, unknown) for series in found]
    if sum(not series.is_skipped for series in found) == 1:
        found = [series if series.is_skipped else _renamed(series, folder) for series in found]
    return found


def _with_strays(found: list[Series], strays: list[DicomHeader]) -> list[Series]:
    """Adds damaged files without a UID to every series of their folder: they could belong to any of them."""
    volumes = [_screened([*series.headers, *strays]) for series in found if not series.is_skipped]
    return [series for series in found if series.is_skipped] + (volumes or [_screened(strays)])


def _noted(series: Series, beside: list[Path]) -> Series:
    """Adds a note of files beside the series that may be slices of it."""
    names = [printable(path.name) for path in beside if not _is_known(path)]
    if not names or series.reason:
        return series
    shown = ", ".join(names[:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else "")
    note = (
        f"beside its slices {'lies' if len(names) == 1 else 'lie'} {counted(len(names), 'file')} that "
        f"{'is' if len(names) == 1 else 'are'} neither DICOM nor of a known kind ({shown}); if these are "
        "slices, the volume is shorter than the scan"
    )
    return series._replace(notes=(*series.notes, note))


def _is_known(path: Path) -> bool:
    """Tells whether a file that is not DICOM is known by its name, or is empty."""
    name = path.name.lower()
    if name.endswith((*SUFFIXES, *KNOWN_BESIDE)) or any(mimetypes.guess_type(name)):
        return True
    try:
        return path.stat().st_size == 0
    except OSError:
        return False


def _screened(headers: list[DicomHeader]) -> Series:
    path = headers[0].path
    geometry, refusal = screen_series(path, headers)
    if geometry:
        headers = [headers[index] for index in geometry.order]
    return Series(
        path=str(path),
        files=tuple(str(header.path) for header in headers),
        patient=_first(headers, "patient"),
        uid_hash=_hash(_first(headers, "series_uid") or str(path)),
        study_hash=_hash(_first(headers, "study_uid")),
        reason=refusal,
        geometry=geometry,
        has_contrast_tag=any(header.text("contrast_agent") for header in headers),
        notes=series_notes(headers) if geometry else (),
        headers=tuple(headers),
    )


def _first(headers: list[DicomHeader], name: str) -> str:
    return next((header.text(name) for header in headers if header.text(name)), "")


def _hash(uid: str) -> str:
    return hashlib.sha256(uid.encode(errors=ANY_NAME)).hexdigest()[:16] if uid else ""


def _renamed(series: Series, path: Path) -> Series:
    """Returns the series under another path that stands for it."""
    reason = series.reason
    if reason:
        reason = reason._replace(message=f"{path}{reason.message[len(series.path) :]}")
    return series._replace(path=str(path), reason=reason)
