"""Lists what to evaluate, volumes of a data set or pairs of files, and refuses what cannot be evaluated."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import numpy as np

from bundle.data.cases.split import dataset_root, find_cases
from bundle.data.volumes.reading import RASVolume
from bundle.run.files import open_regular_text
from bundle.run.names import output_name, printable, volume_name

COLUMNS = ("original", "reconstruction")
OPTIONAL_COLUMNS = ("patient", "inserted_original", "inserted_reconstruction")
SAMPLE_STEP = 4
MIN_LIKENESS = 0.9
SLOPES = (0.7, 1.4)
MAX_OFFSET_HU = 300
UNLIKE_BELOW, VARIED_HU = 0.8, 200
"""A chest and its reconstruction correlate by more, however bad the reconstruction is."""
MAX_AFFINE_MM = 0.1
SHIFTED_BELOW = 0.8
MIN_SIDE = 7


class PairsError(ValueError):
    """A table of pairs that cannot be used; the message names the file and the line."""


class RefusedVolumeError(ValueError):
    """A volume that is not evaluated; the message names it and says why."""


@dataclass
class EvaluationCase:
    """One volume to evaluate.

    Attributes:
        name: unique, on one line; names its rows in the tables.
        patient: whose scan it is; several volumes of one patient count as one.
        original: file, or folder of a DICOM series.
        reconstruction: file; None where a model makes it.
        inserted: pairs of files, original with emboli and its reconstruction.
    """

    name: str
    patient: str
    original: Path
    reconstruction: Path | None = None
    inserted: list[tuple[Path, Path]] = field(default_factory=list)
    stem: str = ""
    """Unique; begins the names of its files in the output folder, and holds nothing that a path could."""


def cases_of_data(dataset_dir: str | Path) -> list[EvaluationCase]:
    """Lists the volumes of a data set, for a model to reconstruct.

    Raises:
        DatasetError: if there is no data set; a volume that cannot be read is refused later, alone.
    """
    root = dataset_root(dataset_dir)
    cases = [
        EvaluationCase(printable(output_name(c["image"], root).as_posix()), c["patient"], Path(c["image"]))
        for c in find_cases(dataset_dir)
    ]
    return _with_unique_names(cases)


def cases_of_pairs(table: str | Path) -> list[EvaluationCase]:
    """Reads the pairs of a CSV table, one per line.

    Lines with the same original and reconstruction are one case; each of them adds an inserted pair.

    Args:
        table: has the columns `original` and `reconstruction`; `patient`, `inserted_original` and
            `inserted_reconstruction` are optional. Paths are relative to the table or absolute.

    Raises:
        PairsError: if it cannot be read, lacks a column, or a line lacks a file name.
    """
    table = Path(table)
    try:
        with open_regular_text(table, "utf-8-sig", "") as file:
            reader = csv.DictReader(file, restkey="", restval="", delimiter=_delimiter(file))
            rows = {number: row for row in reader if (number := reader.line_num)}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PairsError(f"{table}: cannot be read as a CSV table ({error}); correct it") from error
    columns = set(next(iter(rows.values()), ()))
    missing = [name for name in COLUMNS if name not in columns]
    if missing or not rows:
        raise PairsError(
            f"{table}: must have the columns {', '.join(COLUMNS)} and a line for each pair, "
            f"{'lacks ' + ', '.join(missing) if rows else 'has no line'}; correct it"
        )
    cases: dict[tuple[str, str], EvaluationCase] = {}
    patients: dict[str, str] = {}
    taken = {(row.get("patient") or "").strip(): 1 for row in rows.values()}
    for number, row in rows.items():
        values = {name: (row.get(name) or "").strip() for name in (*COLUMNS, *OPTIONAL_COLUMNS)}
        _check_row(table, number, values)
        key = values["original"], values["reconstruction"]
        original, reconstruction = (table.parent / value for value in key)
        name = printable(volume_name(original))
        patient = values["patient"] or patients.get(key[0]) or _unique(name, taken)
        # one original is one patient, and files of one name in two folders are two
        patients[key[0]] = patient
        case = cases.setdefault(key, EvaluationCase(name, patient, original, reconstruction))
        if values["inserted_original"]:
            inserted = (values[f"inserted_{part}"] for part in COLUMNS)
            pair = [table.parent / value for value in inserted]
            case.inserted.append((pair[0], pair[1]))
    return _with_unique_names(list(cases.values()))


def _delimiter(file: TextIO) -> str:
    """Returns the delimiter that the header uses; spreadsheets of many countries write semicolons."""
    header = file.readline()
    file.seek(0)
    return next((one for one in (",", ";", "\t") if one in header), ",")


def _check_row(table: Path, number: int, values: Mapping[str, str]) -> None:
    if any("\0" in value for value in values.values()):
        raise PairsError(f"{table}, line {number}: must hold text, got a zero byte; write the table again")
    for name in COLUMNS:
        if not values[name]:
            raise PairsError(f"{table}, line {number}: `{name}` is empty; name a file")
    if bool(values["inserted_original"]) != bool(values["inserted_reconstruction"]):
        raise PairsError(
            f"{table}, line {number}: `inserted_original` and `inserted_reconstruction` belong together, one "
            "is empty; name both files or none"
        )


def check_original(case: EvaluationCase, original: RASVolume) -> None:
    """Refuses a volume for which no figure is defined.

    Raises:
        RefusedVolumeError: if its axial slices are smaller than 7 x 7.
    """
    if min(original.voxels.shape[:2]) < MIN_SIDE:
        x, y, z = original.voxels.shape
        raise RefusedVolumeError(
            f"{case.name}: axial slices must have at least {MIN_SIDE} x {MIN_SIDE} voxels, got {x} x {y}; "
            "leave it out"
        )


def check_pair(case: EvaluationCase, original: RASVolume, recon: RASVolume) -> list[str]:
    """Refuses pairs that do not belong together; returns warnings.

    Raises:
        RefusedVolumeError: if shapes or affines differ, or the reconstruction is not in HU.
    """
    if original.voxels.shape != recon.voxels.shape:
        raise RefusedVolumeError(
            f"{case.name}: original and reconstruction must have one shape, got {original.voxels.shape} and "
            f"{recon.voxels.shape}; reconstruct without resampling or cropping"
        )
    corners = np.array(np.meshgrid(*([0, size - 1] for size in original.voxels.shape))).reshape(3, -1)
    moved = (original.affine - recon.affine)[:3, :3] @ corners + (original.affine - recon.affine)[:3, 3:]
    distance_mm = float(np.linalg.norm(moved, axis=0).max())
    if not distance_mm <= MAX_AFFINE_MM:
        raise RefusedVolumeError(
            f"{case.name}: original and reconstruction must lie in the same place, their affines differ by "
            f"up to {distance_mm:.3g} mm; keep the original's header"
        )
    likeness = _check_unit(case, original.voxels, recon.voxels)
    if likeness < UNLIKE_BELOW:
        return [
            f"{case.name}: the reconstruction does not look like the original (correlation {likeness:.2f}); "
            "is it of another scan?"
        ]
    shift = _shift(original.voxels, recon.voxels)
    if any(shift):
        return [
            f"{case.name}: the reconstruction looks shifted by {shift} voxels (right, anterior, superior) "
            "against the original; its figures measure the shift"
        ]
    return []


def _check_unit(case: EvaluationCase, original: np.ndarray, recon: np.ndarray) -> float:
    """Refuses a reconstruction that is not in HU; returns its correlation, 1 if that tells nothing."""
    sample = (slice(None, None, SAMPLE_STEP),) * 3
    old, new = (volume[sample].astype(np.float64).clip(-1024, 3071).ravel() for volume in (original, recon))
    spread = old.std(), new.std()
    if spread[0] < 1:
        return 1.0
    is_flat = spread[1] < 0.02 * spread[0]
    likeness = 0.0 if spread[1] == 0 else float(np.corrcoef(old, new)[0, 1])
    slope = likeness * spread[1] / spread[0]
    offset = float(new.mean() - slope * old.mean())
    is_scaled = likeness > MIN_LIKENESS and not SLOPES[0] <= slope <= SLOPES[1]
    # The median: a few voxels that ran over the end of their type would hide that all others are moved.
    is_moved = abs(float(np.median(new - old))) > MAX_OFFSET_HU
    if is_flat or is_scaled or is_moved:
        raise RefusedVolumeError(
            f"{case.name}: the reconstruction must be in HU, but it is about {slope:.3g} x original "
            f"{offset:+.4g}; convert it to HU"
        )
    return likeness if spread[0] >= VARIED_HU else 1.0


def _shift(original: np.ndarray, recon: np.ndarray) -> tuple[int, int, int]:
    """Returns the shift by one voxel at which the reconstruction fits clearly better, or zeros."""
    middle = [slice(max(n // 2 - 64, 0), min(n // 2 + 64, n)) for n in original.shape]
    old, new = (volume[tuple(middle)].astype(np.float32).clip(-1000, 1000) for volume in (original, recon))
    if min(old.shape) < 4:
        return 0, 0, 0
    inner = old[1:-1, 1:-1, 1:-1]
    errors = {}
    for step in [(0, 0, 0), *(tuple(s * (a == b) for b in range(3)) for a in range(3) for s in (-1, 1))]:
        window = tuple(slice(1 + s, n - 1 + s) for s, n in zip(step, old.shape, strict=True))
        errors[step] = float(np.mean((new[window] - inner) ** 2))
    best = min(errors, key=lambda step: errors[step])
    if errors[best] < SHIFTED_BELOW * errors[0, 0, 0]:
        return best[0], best[1], best[2]
    return 0, 0, 0


def _with_unique_names(cases: Sequence[EvaluationCase]) -> list[EvaluationCase]:
    names: dict[str, int] = {}
    stems: dict[str, int] = {}
    for case in cases:
        case.name = _unique(case.name, names)
        case.stem = _unique(re.sub(r"[^A-Za-z0-9_-]+", "_", case.name)[:100], stems)
    return list(cases)


def _unique(text: str, taken: dict[str, int]) -> str:
    """Returns `text`, with a number appended if it is taken, and remembers it as taken.

    Args:
        text: a name.
        taken: the last number that was given to each name, or 1.
    """
    chosen = text
    while chosen in taken:
        taken[text] += 1
        chosen = f"{text}_{taken[text]}"
    taken[chosen] = 1
    return chosen
