"""Lists the volumes of a data set and splits them by patient; reads headers only and writes nothing."""

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from monai.config import PathLike

from bundle.data.cases.find import DatasetError, Found, datalist_root, find_volumes, is_datalist
from bundle.data.cases.patients import Case, check_independence, keep_patients, validation_patients
from bundle.data.volumes.formats import described_formats
from bundle.run.names import output_name
from bundle.run.rules import check

logger = logging.getLogger(__name__)

__all__ = [
    "Case",
    "DatasetError",
    "dataset_root",
    "existing_source",
    "find_cases",
    "inference_cases",
    "split_cases",
]


def find_cases(dataset_dir: PathLike) -> list[Case]:
    """Lists the volumes of a data set: NIfTI files by their names, DICOM series by their headers.

    Series that cannot be CT volumes (localizer, dose report, other modality) are left out with one warning
    each; damaged ones are listed.

    Args:
        dataset_dir: a folder of NIfTI files, of DICOM folders, or of both (subfolders are searched, hidden
            files left out); one .nii or .nii.gz file; one file of a DICOM series; or a Decathlon-style
            datalist .json of files or DICOM folders, by paths that are relative to it or begin with /.

    Returns:
        Sorted items `{"image": path, "patient": name}`; those of a datalist in its own order.

    Raises:
        DatasetError: if it is missing or empty, or if a datalist is malformed or points outside its folder.
    """
    return [found.case for found in _find(existing_source(dataset_dir))]


def split_cases(
    dataset_dir: PathLike, max_patients: int | None = None, allow_shared_patients: bool = False
) -> dict[str, list[Case]]:
    """Splits a data set by patient, about 80 to 20, and checks the header of every volume it returns.

    A datalist's own validation list is taken as it is. A single patient is on both sides if that is allowed.

    Args:
        dataset_dir: see `find_cases`.
        max_patients: how many patients to keep, always the same ones; of a datalist with its own validation
            list, how many of its training patients. None keeps all.
        allow_shared_patients: whether a patient may be in training and in validation, with a warning.

    Returns:
        `{"training": cases, "validation": cases}`, neither empty.

    Raises:
        SettingsError: if `max_patients` is below 1.
        SharedPatientsError: if a patient is on both sides and `allow_shared_patients` is false.
        DatasetError: see `find_cases`; or if volumes are unusable, naming each.
    """
    check(max_patients=max_patients)
    source = existing_source(dataset_dir)
    everything = _find(source)
    volumes = [found for found in everything if found.listed in ("training", "")]
    cases = keep_patients([found.case for found in volumes], max_patients)
    if not cases:
        raise DatasetError(f"{source}: its list `training` is empty; name at least one volume there")
    own_validation = [found for found in everything if found.listed == "validation"]
    if own_validation:
        split = {"training": cases, "validation": [found.case for found in own_validation]}
    else:
        patients = validation_patients({case["patient"] for case in cases})
        split = {
            "training": [case for case in cases if case["patient"] not in patients] or cases,
            "validation": [case for case in cases if case["patient"] in patients],
        }
    used = {case["image"] for case in split["training"] + split["validation"]}
    _check_headers(source, [found for found in [*volumes, *own_validation] if found.case["image"] in used])
    check_independence(split, allow_shared_patients)
    return split


def inference_cases(
    dataset_dir: PathLike, on_error: str = "stop", shard_index: int = 0, shard_count: int = 1
) -> list[Case]:
    """Lists all volumes of a data set, or every `shard_count`-th of them.

    Args:
        dataset_dir: see `find_cases`.
        on_error: `stop` checks every header now; `skip` leaves that until the volume is read.
        shard_index: which share of the volumes, from 0.
        shard_count: shares.

    Returns:
        items `{"image": path, "patient": name}`; with `skip` also `fault`, if one is known already.

    Raises:
        SettingsError: if there is no such shard.
        DatasetError: see `find_cases`; with `stop` also if volumes are unusable, naming each, or if two would
            get the same output name.
    """
    check(on_error=on_error, shard_index=shard_index, shard_count=shard_count)
    source = existing_source(dataset_dir)
    volumes = _find(source)
    clashes = _name_clashes(dataset_root(source), volumes)
    share = volumes[shard_index::shard_count]
    if on_error == "stop":
        _check_headers(source, share)
        if clashes:
            raise DatasetError(next(iter(clashes.values())))
        return [found.case for found in share]
    faults = {found.case["image"]: found.entry.refusal[1] for found in share if found.entry.refusal} | clashes
    return [_with_fault(found.case, faults) for found in share]


def _name_clashes(root: str, volumes: Iterable[Found]) -> dict[str, str]:
    """Returns, by path, a message for each volume that would get the output name of an earlier one."""
    seen: dict[Path, str] = {}
    clashes = {}
    for found in volumes:
        image = found.case["image"]
        other = seen.setdefault(output_name(image, root), image)
        if other != image:
            clashes[image] = f"{image}: would get the same output name as {other}; rename one"
    return clashes


def _with_fault(case: Case, faults: Mapping[str, str]) -> Case:
    fault = faults.get(case["image"])
    return {**case, "fault": fault} if fault else case


def dataset_root(dataset_dir: PathLike) -> str:
    """Returns the folder that the volumes lie below: `dataset_dir`, or that of the file or list it names."""
    source = Path(dataset_dir)
    if is_datalist(source):
        return str(datalist_root(source))
    return str(source if source.is_dir() else source.parent)


def existing_source(dataset_dir: PathLike) -> Path:
    """Returns the path of a data set; for a prepared store that is its datalist.

    Raises:
        DatasetError: if it is not given, or missing.
    """
    if not str(dataset_dir or ""):
        raise DatasetError(
            f"`dataset_dir` must be given; name a folder, {described_formats()}, or a datalist .json"
        )
    source = Path(dataset_dir).expanduser()
    if not os.path.exists(source):  # pathlib would raise for a name that is too long
        raise DatasetError(f"{source}: no such file or folder; check `dataset_dir`")
    is_store = (source / "datalist.json").is_file() and (source / "volumes").is_dir()
    return source / "datalist.json" if is_store else source


def _find(source: Path) -> list[Found]:
    volumes = []
    for found in find_volumes(source):
        if found.entry.is_skipped and found.entry.refusal:
            logger.warning("%s; it is skipped", found.entry.refusal[1])
        else:
            volumes.append(found)
    if not volumes and is_datalist(source):
        raise DatasetError(f"{source}: its list `training` is empty; name at least one volume there")
    if not volumes:
        raise DatasetError(f"{source}: holds no volume ({described_formats()}); give another `dataset_dir`")
    return volumes


def _check_headers(source: Path, volumes: Iterable[Found]) -> None:
    """Looks at every volume once and reports all unusable ones together."""
    once = {found.case["image"]: found for found in volumes}
    faults = [fault for found in once.values() if (fault := found.fault())]
    if faults:
        lines = "\n  ".join(faults)
        raise DatasetError(f"{source}: {len(faults)} of {len(once)} volumes cannot be used:\n  {lines}")
