"""Finds the volumes of a folder, a file or a datalist: of all formats, alone or mixed.

The patient of a DICOM series is its hashed PatientID. The patient of another volume is the folder at the
first level where volumes differ, or the name of a file that lies loose.
"""

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bundle.data.cases.patients import CHANNEL, IMAGE_FOLDERS, Case, patients_by_folder
from bundle.data.store.file import StoreError
from bundle.data.volumes.formats import (
    Entry,
    Format,
    VolumeError,
    described_formats,
    format_of,
    formats,
    read_header,
)
from bundle.run.files import files_in, open_regular, walk_files
from bundle.run.names import printable, shown, volume_name

logger = logging.getLogger(__name__)

LABEL_FOLDERS = ("labelsTr", "labelsTs")
MAX_NAMED = 5
LISTS = ("training", "validation", "testing", "test")
RESULT = re.compile(r"_recon(\.nii(\.gz)?)?$", re.IGNORECASE)  # or a folder of a derived DICOM series


class DatasetError(ValueError):
    """A `dataset_dir` that cannot be used; the message names the folder or every file at fault."""


class Found(NamedTuple):
    """Describes a volume that was found, or a series that is not a volume.

    Attributes:
        case: `{"image": path, "patient": name}`; the name is empty until all volumes are known.
        entry: what its format knows about it.
        listed: name of the list that names it; empty where the split decides.
    """

    case: Case
    entry: Entry
    listed: str = ""

    def fault(self) -> str | None:
        """Says why its header makes it unusable; None if it does not."""
        if not self.entry.is_checked:
            try:
                read_header(self.case["image"])
            except (VolumeError, StoreError) as error:
                return str(error)
        return self.entry.refusal[1] if self.entry.refusal else None


def find_volumes(source: Path) -> list[Found]:
    """Finds the volumes of a data set, and the series in it that cannot be CT volumes.

    Args:
        source: a folder, a volume, or a datalist.

    Returns:
        Sorted volumes, or those of a datalist in its own order. `listed` is set by a datalist, and for
        imagesTs beside imagesTr.

    Raises:
        DatasetError: if a file is neither a volume nor a datalist.
    """
    if is_datalist(source):
        lists = read_datalist(source)
        return [found for name in LISTS for found in lists.get(name, [])]
    if source.is_dir():
        volumes = sorted(_volumes_below(source), key=lambda found: Path(found.case["image"]))
        volumes = _set_test_images_apart(source, volumes)
        _name_patients(source, volumes)
        _warn_of_parts(volumes)
        _warn_of_results([found.case["image"] for found in volumes])
        return volumes
    found_format = format_of(source) if os.path.isfile(source) else None
    if found_format is None:
        raise DatasetError(f"{source}: must be a folder, {described_formats()}, or a datalist .json")
    volumes = [_named(found_format, source)]
    _name_patients(source.parent, volumes)
    return volumes


def is_datalist(source: Path) -> bool:
    """Tells whether a path is a file with the suffix .json."""
    return source.suffix.lower() == ".json" and source.is_file()


def read_datalist(source: Path) -> dict[str, list[Found]]:
    """Reads the volumes of a Decathlon-style datalist, by list.

    Raises:
        DatasetError: if it is malformed, or if a relative path leads out of its folder.
    """
    lists = _items(source)
    found = {name: [_listed(source, name, item) for item in items] for name, items in lists.items()}
    given = [_given_patient(item) for items in lists.values() for item in items]
    volumes = [volume for volumes in found.values() for volume in volumes]
    unnamed = [volume for volume, patient in zip(volumes, given, strict=True) if not patient]
    _name_patients(_root_of(source, lists), unnamed)
    for volume, patient in zip(volumes, given, strict=True):
        volume.case["patient"] = patient or volume.case["patient"]
    return found


def _given_patient(item: Any) -> str:
    patient = item.get("patient") if isinstance(item, dict) else None
    return patient if isinstance(patient, str) else ""


def datalist_root(source: Path) -> Path:
    """Returns the folder above all listed volumes: the list's own, or else the nearest that they share."""
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
            f'{source}: must hold {{"training": [{{"image": "FILE.nii.gz"}}, ...]}}, as Decathlon lists do'
        )
    return {name: content[name] for name in LISTS if isinstance(content.get(name), list)}


def _volumes_below(folder: Path) -> Iterator[Found]:
    masks: dict[str, int] = {}
    for parent, paths in walk_files(folder):
        if parent != folder and _holds_masks(parent):
            masks[parent.name] = masks.get(parent.name, 0) + len(paths)
            continue
        for candidate in formats():
            entries = candidate.entries(parent, paths)
            taken = {entry.path for entry in entries}
            paths = [path for path in paths if str(path) not in taken]
            yield from map(_found, entries)
    for name, count in masks.items():
        logger.warning(
            "%s: %d files in folders called %s are masks of the scans beside them and are left out",
            *(folder, count, name),
        )


def _holds_masks(folder: Path) -> bool:
    """Tells whether a folder holds the masks of nnU-Net's or TotalSegmentator's layout."""
    if folder.name in LABEL_FOLDERS:
        return any((folder.parent / name).is_dir() for name in IMAGE_FOLDERS)
    return folder.name == "segmentations" and any(
        candidate.entries(folder.parent, files_in(folder.parent)) for candidate in formats()
    )


def _set_test_images_apart(root: Path, volumes: Sequence[Found]) -> list[Found]:
    """Lists files in imagesTs as test images where imagesTr lies beside it."""
    folders = [Path(found.case["image"]).parent for found in volumes]
    is_test = [
        folder.name == "imagesTs" and folder != root and (folder.parent / "imagesTr").is_dir()
        for folder in folders
    ]
    if any(is_test):
        logger.warning(
            "%s: the %d volumes in imagesTs are kept for testing; neither training nor validation uses them",
            *(root, sum(is_test)),
        )
    return [
        found._replace(listed="testing") if apart else found
        for found, apart in zip(volumes, is_test, strict=True)
    ]


def _found(entry: Entry) -> Found:
    return Found({"image": entry.path, "patient": entry.patient}, entry)


def _name_patients(root: Path, volumes: Sequence[Found]) -> None:
    """Sets the patient of each volume: the hash of its PatientID, else the name of its folder.

    Files without a PatientID get the hash of the one DICOM patient whose series lie in the same folder.
    """
    volumes = [found for found in volumes if not found.entry.is_skipped]
    names = patients_by_folder(root, [Path(found.case["image"]) for found in volumes])
    hashes: dict[str, set[str]] = {}
    examples: dict[str, str] = {}
    for found, name in zip(volumes, names, strict=True):
        if found.entry.series:
            hashes.setdefault(name, set()).add(found.case["patient"] or name)
            examples.setdefault(name, os.path.relpath(found.case["image"], root))
    _warn_of_one_id(root, hashes, examples)
    for found, name in zip(volumes, names, strict=True):
        known = hashes.get(name, set())
        is_joined = not found.entry.series and len(known) == 1 and Path(found.case["image"]).parent != root
        found.case["patient"] = next(iter(known)) if is_joined else found.case["patient"] or name
    _warn_of_one_folder(root, volumes)


def _warn_of_one_folder(root: Path, volumes: Sequence[Found]) -> None:
    """Warns if several files are taken for one patient's because they lie in one folder."""
    folders = {Path(found.case["image"]).parent for found in volumes}
    patients = {found.case["patient"] for found in volumes}
    is_by_folder = not any(found.entry.series for found in volumes)
    if is_by_folder and len(volumes) > 1 and len(folders) == 1 and len(patients) == 1 and root not in folders:
        first = os.path.relpath(volumes[0].case["image"], root)
        item = json.dumps({"image": printable(first), "patient": "NAME"})
        logger.warning(
            "%s: all %d volumes lie in %s and are taken for one patient's; if they are of several patients, "
            'give each a "patient" in a datalist .json in %s: {"training": [%s, ...]}',
            *(root, len(volumes), printable(os.path.relpath(folders.pop(), root)), root, item),
        )


def _warn_of_one_id(root: Path, hashes: Mapping[str, set[str]], examples: Mapping[str, str]) -> None:
    """Warns if most folders have the same PatientID: an anonymiser may have written it into all files."""
    counts = Counter(patient for found in hashes.values() for patient in found)
    patient, n_folders = counts.most_common(1)[0] if counts else ("", 0)
    if n_folders < 2 or 2 * n_folders <= len(hashes):
        return
    folders = [name for name, found in hashes.items() if patient in found]
    item = json.dumps({"image": printable(examples[folders[0]]), "patient": printable(folders[0])})
    logger.warning(
        "%s: %d folders (%s) carry the same PatientID and are taken for one patient; if an anonymiser gave "
        'all patients that ID, list the volumes with a "patient" each in a datalist .json beside them: '
        '{"training": [%s, ...]}',
        *(root, n_folders, ", ".join(map(printable, folders[:MAX_NAMED])), item),
    )


def _warn_of_parts(volumes: Sequence[Found]) -> None:
    """Warns of a series in several folders: some archives split a series by number of files."""
    places: dict[str, list[str]] = {}
    for found in volumes:
        if found.entry.series and not found.entry.is_skipped:
            places.setdefault(found.entry.series, []).append(found.case["image"])
    for images in places.values():
        if len(images) > 1:
            logger.warning(
                "one series lies in %d folders and is taken for that many volumes: %s; put its files into one"
                " folder, or remove the copies",
                len(images), ", ".join(images),
            )  # fmt: skip


def _warn_of_results(images: Sequence[str]) -> None:
    """Warns of this project's own results: training on them makes figures look better than they are."""
    results = [image for image in images if RESULT.search(image)]
    if results:
        logger.warning(
            "%d of %d volumes are called *_recon, like results of this project (%s); move results out of "
            "`dataset_dir`, or they are taken for scans",
            len(results), len(images), results[0] if len(results) == 1 else f"{results[0]}, ...",
        )  # fmt: skip


def _listed_path(source: Path, item: Any) -> Path:
    image = item.get("image") if isinstance(item, dict) else item
    if not isinstance(image, str) or not image:
        raise DatasetError(
            f'{source}: each item must be {{"image": "FILE.nii.gz"}}, got {shown(item)}; correct it'
        )
    # Paths are compared as written: a link or a whole path is the owner's decision, ".." is not.
    path = Path(os.path.normpath(source.parent / image))
    if not Path(image).is_absolute() and not path.is_relative_to(Path(os.path.normpath(source.parent))):
        raise DatasetError(
            f"{source}: points outside its own folder, to {image}; give the whole path, beginning with /"
        )
    return path


def _listed(source: Path, name: str, item: Any) -> Found:
    path = _with_channel(_listed_path(source, item))
    try:
        found = _named(format_of(path), path)
    except OSError as error:
        raise DatasetError(f"{source}: names a file that cannot be accessed ({error}); correct it") from error
    return found._replace(listed=name)


def _with_channel(path: Path) -> Path:
    """Returns the file that a list means: nnU-Net's lists leave out the channel in file names."""
    if path.parent.name not in IMAGE_FOLDERS or os.path.exists(path):
        return path
    name = volume_name(path)
    channel = path.with_name(f"{name}{CHANNEL}{path.name[len(name) :]}")
    return channel if os.path.isfile(channel) else path


def _named(named_format: Format | None, path: Path) -> Found:
    """Describes a volume that a person named; if it cannot be a CT, that is reported, not passed over."""
    try:
        entry = named_format.entry(path) if named_format else Entry(str(path))
    except VolumeError as error:
        entry = Entry(str(path), True, (error.code, str(error)))
    return _found(entry._replace(is_skipped=False))
