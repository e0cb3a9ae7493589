"""Finds CT volumes, names their patients and splits them; reads headers only and writes nothing.

Patient = first folder below `dataset_dir`; of a loose file, its name without suffix. The split of a patient
depends on the patient's name alone, so volumes that come later move nobody from training to validation.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from monai.config import PathLike

from bundle.data.header import SUFFIXES, VolumeError, read_header

logger = logging.getLogger(__name__)

VALIDATION_RATIO = 0.2
LISTS = ("training", "validation", "testing", "test")
# Two salts: with one, the smallest hashes that `max_patients` takes would all be validation patients.
SPLIT_SALT = "ctpa_vqgan/validation"
SUBSET_SALT = "ctpa_vqgan/max_patients"

Case = dict[str, str]


class DatasetError(ValueError):
    """A `dataset_dir` that cannot be used; the message names the folder or every file at fault."""


def find_cases(dataset_dir: PathLike) -> list[Case]:
    """Lists the volumes of a data set without opening them.

    Args:
        dataset_dir: a folder (searched to its depth, hidden files left out), one .nii or .nii.gz file, or a
            Decathlon-style datalist .json whose paths are relative to it.

    Returns:
        sorted items `{"image": path, "patient": name}`; of a datalist, its lists in their own order.

    Raises:
        DatasetError: if it is missing or empty, or if a datalist is malformed or points outside its folder.
    """
    source = _existing(dataset_dir)
    if source.suffix.lower() == ".json":
        lists = _read_datalist(source)
        cases = [case for name in LISTS for case in lists.get(name, [])]
    elif source.is_file():
        if not source.name.lower().endswith(SUFFIXES):
            raise DatasetError(f"{source}: must be a folder, a .nii or .nii.gz file, or a datalist .json")
        cases = [_case(source.parent, source)]
    else:
        cases = [_case(source, path) for path in sorted(_volumes_below(source))]
    if not cases:
        raise DatasetError(f"{source}: holds no .nii or .nii.gz volume; give another `dataset_dir`")
    return cases


def split_cases(dataset_dir: PathLike, max_patients: int | None = None) -> dict[str, list[Case]]:
    """Splits a data set by patient, about 80 to 20, and checks the header of every volume it returns.

    A datalist's own validation list is taken as it is. A single patient serves both sides, with a warning.

    Args:
        dataset_dir: see `find_cases`.
        max_patients: how many patients to keep, always the same ones; of a datalist with its own validation
            list, how many of its training patients. None keeps all.

    Returns:
        `{"training": cases, "validation": cases}`, neither empty.

    Raises:
        DatasetError: see `find_cases`; if `max_patients` is below 1; or if volumes are unusable, naming each.
    """
    if max_patients is not None and max_patients < 1:
        raise DatasetError(f"`max_patients` must be at least 1, got {max_patients}; leave it out to use all")
    source = _existing(dataset_dir)
    lists = _read_datalist(source) if source.suffix.lower() == ".json" else {}
    cases = _keep(lists.get("training", []) if lists else find_cases(source), max_patients)
    if not cases:
        raise DatasetError(f"{source}: its list `training` is empty; name at least one volume there")
    if lists.get("validation"):
        split = {"training": cases, "validation": lists["validation"]}
    else:
        patients = _validation_patients({case["patient"] for case in cases})
        split = {
            "training": [case for case in cases if case["patient"] not in patients] or cases,
            "validation": [case for case in cases if case["patient"] in patients],
        }
    _warn_of_shared_patients(split)
    _check_headers(source, split["training"] + split["validation"])
    return split


def inference_cases(dataset_dir: PathLike) -> list[Case]:
    """Lists all volumes of a data set, their headers checked.

    Args:
        dataset_dir: see `find_cases`.

    Returns:
        items `{"image": path, "patient": name}`.

    Raises:
        DatasetError: see `find_cases`; if volumes are unusable, naming each; or if two would get the same
            output name.
    """
    cases = find_cases(dataset_dir)
    _check_headers(Path(dataset_dir), cases)
    seen: dict[str, str] = {}
    for case in cases:
        image = case["image"]
        if seen.setdefault(_without_suffix(image), image) != image:
            raise DatasetError(
                f"{image}: would get the same output name as {seen[_without_suffix(image)]}; rename one"
            )
    return cases


def dataset_root(dataset_dir: PathLike) -> str:
    """The folder that the volumes lie below: `dataset_dir` itself, or the folder of the file it names."""
    return str(dataset_dir if Path(dataset_dir).is_dir() else Path(dataset_dir).parent)


def _existing(dataset_dir: PathLike) -> Path:
    if not str(dataset_dir or ""):
        raise DatasetError("`dataset_dir` must be given; name a folder, a NIfTI file or a datalist .json")
    source = Path(dataset_dir).expanduser()
    if not source.exists():
        raise DatasetError(f"{source}: no such file or folder; check `dataset_dir`")
    return source


def _volumes_below(folder: Path) -> Iterator[Path]:
    """NIfTI files below a folder, through links but never twice through the same folder."""
    visited = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [] if real in visited else [name for name in folders if not name.startswith(".")]
        if real not in visited:
            visible = (name for name in names if not name.startswith("."))
            yield from (Path(parent) / name for name in visible if name.lower().endswith(SUFFIXES))
        visited.add(real)


def _read_datalist(source: Path) -> dict[str, list[Case]]:
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DatasetError(f"{source}: is not valid JSON ({error}); correct it") from error
    if not isinstance(content, dict) or not any(isinstance(content.get(name), list) for name in LISTS):
        raise DatasetError(
            f'{source}: must hold {{"training": [{{"image": "FILE.nii.gz"}}, ...]}}, as Decathlon lists'
        )
    lists = {name: content[name] for name in LISTS if isinstance(content.get(name), list)}
    return {name: [_listed_case(source, item) for item in items] for name, items in lists.items()}


def _listed_case(source: Path, item: Any) -> Case:
    image = item.get("image") if isinstance(item, dict) else item
    if not isinstance(image, str) or not image:
        raise DatasetError(
            f'{source}: each item must be {{"image": "FILE.nii.gz"}}, got {item!r}; correct it'
        )
    # Compared as written: a link inside the folder is its owner's decision, a path with ".." is not.
    path = Path(os.path.normpath(source.parent / image))
    if not path.is_relative_to(os.path.normpath(source.parent)):
        raise DatasetError(
            f"{source}: points outside its own folder, to {image}; move the volume or the list"
        )
    case = _case(Path(os.path.normpath(source.parent)), path)
    if isinstance(item, dict) and isinstance(item.get("patient"), str):
        case["patient"] = item["patient"]
    return case


def _case(root: Path, path: Path) -> Case:
    first = path.relative_to(root).parts[0]
    return {"image": str(path), "patient": first if path.parent != root else _without_suffix(first)}


def _without_suffix(name: str) -> str:
    return name[: -len(".nii.gz")] if name.lower().endswith(".gz") else name[: -len(".nii")]


def _hash(salt: str, patient: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{salt}/{patient}".encode()).digest())


def _keep(cases: list[Case], max_patients: int | None) -> list[Case]:
    """The cases of the patients with the smallest hashes."""
    ranked = sorted({case["patient"] for case in cases}, key=lambda patient: _hash(SUBSET_SALT, patient))
    kept = set(ranked[:max_patients])
    return [case for case in cases if case["patient"] in kept]


def _validation_patients(patients: set[str]) -> set[str]:
    ranked = sorted(patients, key=lambda patient: _hash(SPLIT_SALT, patient))
    limit = int(VALIDATION_RATIO * 2**256)
    validation = [patient for patient in ranked if _hash(SPLIT_SALT, patient) < limit]
    if len(ranked) == 1:
        validation = ranked
    elif not validation:
        validation = ranked[:1]
        logger.warning("none of %d patients falls to validation; %s is taken", len(ranked), validation[0])
    elif len(validation) == len(ranked):
        validation = ranked[:-1]
        logger.warning("none of %d patients falls to training; %s is taken", len(ranked), ranked[-1])
    return set(validation)


def _warn_of_shared_patients(split: dict[str, list[Case]]) -> None:
    shared = {case["patient"] for case in split["training"]} & {
        case["patient"] for case in split["validation"]
    }
    if shared:
        logger.warning(
            "VALIDATION IS NOT INDEPENDENT: patient(s) %s are in training and in validation; "
            "its figures say nothing about other patients",
            ", ".join(sorted(shared)),
        )


def _check_headers(source: Path, cases: Iterable[Case]) -> None:
    """Reads every header once and reports all unusable files together."""
    faults = []
    images = dict.fromkeys(case["image"] for case in cases)
    for image in images:
        try:
            read_header(image)
        except VolumeError as error:
            faults.append(str(error))
    if faults:
        lines = "\n  ".join(faults)
        raise DatasetError(f"{source}: {len(faults)} of {len(images)} volumes cannot be used:\n  {lines}")
