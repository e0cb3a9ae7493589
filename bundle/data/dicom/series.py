"""Finds the series of a folder tree and reads one as a CT volume.

A series is what lies in one folder under one SeriesInstanceUID; names, suffixes and instance numbers prove
nothing and are not used.
"""

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from monai.config import PathLike

from bundle.data.dicom.geometry import Geometry
from bundle.data.dicom.header import DicomError, DicomHeader, is_dicom, read_dicom_header
from bundle.data.dicom.screening import SKIPPED, Refusal, screen_series
from bundle.data.volumes.nifti import SUFFIXES
from bundle.run.names import ANY_NAME

logger = logging.getLogger(__name__)

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


def find_series(folder: PathLike) -> list[Series]:
    """Finds the DICOM series below a folder; reads headers only.

    Args:
        folder: searched to its depth, hidden files left out, through links but never in circles.

    Returns:
        all series, those that cannot be used too, sorted by path.
    """
    found = [series for parent, paths in walk_files(Path(folder)) for series in series_in(parent, paths)]
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
        here = series_in(path.parent, _visible_files(path.parent) if path.parent.is_dir() else [path])
        found = [series for series in here if str(path) in series.files]
    else:
        here = series_in(path, _visible_files(path)) if path.is_dir() else []
        found = here or (find_series(path) if path.is_dir() else [])
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


def walk_files(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Each folder below `folder`, itself first, with its visible files by name."""
    visited = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_warn_of_folder):
        real = os.path.realpath(parent)
        folders[:] = [] if real in visited else sorted(name for name in folders if not name.startswith("."))
        if real not in visited:
            yield Path(parent), sorted(Path(parent) / name for name in names if not name.startswith("."))
        visited.add(real)


def _warn_of_folder(error: OSError) -> None:
    logger.warning(
        "%s: cannot be listed (%s); what it holds is left out", error.filename, error.strerror or error
    )


def _visible_files(folder: Path) -> list[Path]:
    return next((paths for _, paths in walk_files(folder)), [])


def series_in(folder: Path, paths: Iterable[Path]) -> list[Series]:
    """The series among the files of one folder; see `find_series`."""
    groups: dict[str, list[DicomHeader]] = {}
    strays: list[DicomHeader] = []
    for path in paths:
        # a link to nowhere may be a slice: whoever reads it says so
        is_file = os.path.isfile(path) or os.path.islink(path)
        if path.name.lower().endswith(SUFFIXES) or not is_file or not is_dicom(path):
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
