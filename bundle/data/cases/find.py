"""Finds the volumes of a folder, a file or a datalist: NIfTI and DICOM, alone or mixed.

Patient = the hashed PatientID of a DICOM series; else the first folder below the data set, or of a loose file
its name.
"""

import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bundle.data.cases.patients import Case
from bundle.data.dicom.series import Series, find_one_series, series_in
from bundle.data.store.file import StoreError
from bundle.data.volumes.formats import is_series, read_header
from bundle.data.volumes.nifti import SUFFIXES, VolumeError
from bundle.run.files import open_regular, walk_files
from bundle.run.names import volume_name

logger = logging.getLogger(__name__)

LISTS = ("training", "validation", "testing", "test")
RESULT = re.compile(r"_recon(\.nii(\.gz)?)?$", re.IGNORECASE)  # or a folder of a derived DICOM series


class DatasetError(ValueError):
    """A `dataset_dir` that cannot be used; the message names the folder or every file at fault."""


class Found(NamedTuple):
    """A volume that was found.

    Attributes:
        case: `{"image": path, "patient": name}`.
        is_dicom: whether its headers were read while it was found.
        dicom_fault: what is wrong with them.
        series: hash of the SeriesInstanceUID.
    """

    case: Case
    is_dicom: bool = False
    dicom_fault: str | None = None
    series: str = ""

    def fault(self) -> str | None:
        """What makes it unusable, by its header; None if nothing."""
        if not self.is_dicom:
            try:
                read_header(self.case["image"])
            except (VolumeError, StoreError) as error:
                return str(error)
        return self.dicom_fault


def find_volumes(source: Path) -> list[Found]:
    """Finds the volumes of a folder, sorted, or the one that a file stands for.

    Series that are no CT volume by nature are left out with a warning each.

    Raises:
        DatasetError: if a file is no volume.
    """
    if source.is_dir():
        volumes = list(_volumes_below(source))
        _join_patients(source, volumes)
        _warn_of_parts(volumes)
        _warn_of_results([found.case["image"] for found in volumes])
        return sorted(volumes, key=lambda found: Path(found.case["image"]))
    if os.path.isfile(source) and source.name.lower().endswith(SUFFIXES):
        return [Found(_case(source.parent, source))]
    if is_series(source):
        return [_listed_series(source.parent, source)]
    raise DatasetError(
        f"{source}: must be a folder, a .nii or .nii.gz file, a DICOM file, or a datalist .json"
    )


def read_datalist(source: Path) -> dict[str, list[Found]]:
    """The volumes of a Decathlon-style datalist, by list.

    Raises:
        DatasetError: if it is malformed, or leaves its folder by a relative path.
    """
    lists = _items(source)
    root = _root_of(source, lists)
    return {name: [_listed(source, root, item) for item in items] for name, items in lists.items()}


def datalist_root(source: Path) -> Path:
    """The folder that all listed volumes lie below: the list's own, or else the nearest that they share."""
    return _root_of(source, _items(source))


def _root_of(source: Path, lists: dict[str, list[Any]]) -> Path:
    own = Path(os.path.normpath(source.parent))
    paths = [_listed_path(source, item) for items in lists.values() for item in items]
    if all(path.is_relative_to(own) for path in paths):
        return own
    return Path(os.path.commonpath([path.absolute().parent for path in paths]))


def _items(source: Path) -> dict[str, list[Any]]:
    try:
        with open_regular(source) as file:
            content = json.loads(file.read().decode("utf-8-sig"))  # some editors begin with a byte order mark
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{source}: cannot be read as JSON ({error}); correct it") from error
    if not isinstance(content, dict) or not any(isinstance(content.get(name), list) for name in LISTS):
        raise DatasetError(
            f'{source}: must hold {{"training": [{{"image": "FILE.nii.gz"}}, ...]}}, as Decathlon lists'
        )
    return {name: content[name] for name in LISTS if isinstance(content.get(name), list)}


def _volumes_below(folder: Path) -> Iterator[Found]:
    for parent, paths in walk_files(folder):
        yield from (Found(_case(folder, path)) for path in paths if path.name.lower().endswith(SUFFIXES))
        for series in series_in(parent, paths):
            if series.is_skipped and series.reason:
                logger.warning("%s; it is skipped", series.reason.message)
            else:
                yield _found_series(folder, series)


def _found_series(root: Path, series: Series) -> Found:
    case = _case(root, Path(series.path))
    case["patient"] = series.patient or case["patient"]
    return Found(case, True, series.reason.message if series.reason else None, series.uid_hash)


def _join_patients(root: Path, volumes: Sequence[Found]) -> None:
    """Gives NIfTI files the hash of the one DICOM patient in the same patient's folder."""
    hashes: dict[str, set[str]] = {}
    for found in volumes:
        if found.is_dicom:
            hashes.setdefault(_case(root, Path(found.case["image"]))["patient"], set()).add(
                found.case["patient"]
            )
    for found in volumes:
        known = hashes.get(found.case["patient"], set())
        if not found.is_dicom and len(known) == 1 and Path(found.case["image"]).parent != root:
            found.case["patient"] = next(iter(known))


def _warn_of_parts(volumes: Sequence[Found]) -> None:
    """Some archives cut a series into folders of so many files."""
    places: dict[str, list[str]] = {}
    for found in volumes:
        if found.is_dicom:
            places.setdefault(found.series, []).append(found.case["image"])
    for images in places.values():
        if len(images) > 1:
            logger.warning(
                "one series lies in %d folders and is taken for as many volumes: %s; put its files into one "
                "folder, or remove the copies",
                len(images), ", ".join(images),
            )  # fmt: skip


def _warn_of_results(images: Sequence[str]) -> None:
    """Nobody would notice: figures look better where training sees its own output."""
    results = [image for image in images if RESULT.search(image)]
    if results:
        logger.warning(
            "%d of %d volumes are called *_recon, as results of this project are (%s); move results out of "
            "`dataset_dir`, or they are taken for scans",
            len(results), len(images), results[0] if len(results) == 1 else f"{results[0]}, ...",
        )  # fmt: skip


def _listed_path(source: Path, item: Any) -> Path:
    image = item.get("image") if isinstance(item, dict) else item
    if not isinstance(image, str) or not image:
        raise DatasetError(
            f'{source}: each item must be {{"image": "FILE.nii.gz"}}, got {_shortened(item)}; correct it'
        )
    # Compared as written: a link inside the folder or a whole path is its owner's decision, ".." is not.
    path = Path(os.path.normpath(source.parent / image))
    if not Path(image).is_absolute() and not path.is_relative_to(Path(os.path.normpath(source.parent))):
        raise DatasetError(
            f"{source}: points outside its own folder, to {image}; give the whole path, beginning with /"
        )
    return path


def _shortened(item: Any) -> str:
    try:
        return f"{item!r:.200}"
    except RecursionError:
        return "lists in lists"


def _listed(source: Path, root: Path, item: Any) -> Found:
    path = _listed_path(source, item)
    try:
        found = _listed_series(root, path) if is_series(path) else Found(_case(root, path))
    except OSError as error:
        raise DatasetError(f"{source}: names what cannot be looked at ({error}); correct it") from error
    if isinstance(item, dict) and isinstance(item.get("patient"), str):
        found.case["patient"] = item["patient"]
    return found


def _listed_series(root: Path, path: Path) -> Found:
    """A series that somebody named: whatever is wrong with it is a fault."""
    try:
        return _found_series(root, find_one_series(path))
    except VolumeError as error:
        return Found(_case(root, path), True, str(error))


def _case(root: Path, path: Path) -> Case:
    parts = path.absolute().relative_to(root.absolute()).parts
    return {"image": str(path), "patient": parts[0] if len(parts) > 1 else volume_name(path)}
