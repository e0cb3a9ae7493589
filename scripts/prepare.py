"""Reads a data set once and makes a patch store, from which training runs without the originals.

    python -m scripts.prepare DIR --output STORE [--num_workers 4] [--patch_size 128]
    python -m scripts.prepare --export STORE/volumes/NAME.ctpa OUT.nii.gz

STORE holds `volumes/` (int16 HU, compressed), `datalist.json` (the split) and `prepare_report.csv` (a line
per volume). The split is the one that training on DIR would make, or that of DIR's own lists; patients of an
earlier run keep their side. When run again, it goes on where it stopped and adds new volumes. Train with
`--dataset_dir STORE`. Only the report names the files in DIR; the rest of STORE does not.

The exit code is 0 if every volume can be used, 1 if some were refused, 2 if none can be used. After SIGTERM
or Ctrl-C the volumes being packed are finished; the exit code is then 128 + the signal's number.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from bundle.data.cases.find import find_volumes
from bundle.data.cases.patients import Case
from bundle.data.cases.prepared_list import Prepared, prepared_lists
from bundle.data.cases.split import DatasetError, existing_source
from bundle.data.dicom.screening import smaller_than_a_patch
from bundle.data.store.export import export_volume
from bundle.data.store.store import PatchStore, StoredVolume, StoreError, is_prepared
from bundle.data.volumes.formats import VolumeError, read_header
from bundle.data.volumes.geometry import tilt_degrees, tilt_note
from bundle.distributed.processes import StoppedError, run_tasks
from bundle.run.atomic import remove_leftovers, write_text
from bundle.run.console import CommandParser, csv_cells, tell
from bundle.run.lock import locked
from bundle.run.names import patient_key, printable
from bundle.run.record import run_script

VOLUMES = "volumes"
DATALIST = "datalist.json"
REPORT = "prepare_report.csv"
MAX_SHOWN = 10
# Voxels outside this window, that of the configs, are counted now; a run with another window counts again.
WINDOW_HU = (-1000.0, 1000.0)


class Line(NamedTuple):
    """One line of the report.

    Attributes:
        path: of the volume, relative to the data set if it is inside.
        patient: hash, 16 hexadecimal digits.
        status: prepared, refused or skipped (it cannot be a CT volume, such as a localizer).
        code: the reason as one word; for a prepared volume empty, or `doubtful`: look at it before training.
        message: the reason as a sentence; for a prepared volume, what is odd about it.
        shape: X x Y x Z in voxels, empty if refused.
        file: name in the store; pictures and results are named by its first part, such as `volume_0001`.
        made: `now`, or `earlier` by another run; empty if refused. The report does not hold it.
    """

    path: str
    patient: str
    status: str
    code: str = ""
    message: str = ""
    shape: str = ""
    file: str = ""
    made: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line of this module; returns the exit code."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.num_workers < 0 or given.patch_size < 1:
        parser.error(
            "`num_workers` must be 0 or more and `patch_size` at least 1, got "
            f"{given.num_workers} and {given.patch_size}; correct them"
        )
    if given.export:
        export_volume(*given.export)
        tell(f"wrote {given.export[1]}")
        return 0
    if given.dataset_dir is None or given.output is None:
        parser.error("DIR and --output STORE are needed, or --export")
    try:
        lines = prepare(given.dataset_dir, given.output, given.num_workers, given.patch_size)
    except StoppedError as stopped:
        tell(f"\nerror: {stopped}", file=sys.stderr)  # below the progress bar
        return 128 + stopped.number
    prepared = [line for line in lines if line.status == "prepared"]
    n_new = sum(line.made == "now" for line in prepared)
    n_refused, n_skipped = (sum(line.status == status for line in lines) for status in ("refused", "skipped"))
    tell(
        f"{n_new} prepared, {len(prepared) - n_new} already there, {n_refused} refused, {n_skipped} skipped; "
        f"see {given.output / REPORT}"
    )
    doubtful = [line for line in prepared if line.code]
    if doubtful:
        tell(f"look at these before training, {len(doubtful)} in all:")
    for line in doubtful[:MAX_SHOWN]:
        tell(f"  {printable(line.path)}: {line.message}")
    if not prepared:
        return 2
    tell(f"train with --dataset_dir {shlex.quote(str(given.output))}")
    return int(n_refused > 0)


def prepare(dataset_dir: Path, output: Path, num_workers: int = 4, patch_size: int = 4) -> list[Line]:
    """Fills a store, and writes its datalist and its report.

    Args:
        dataset_dir: see `bundle.data.cases.split.find_cases`.
        output: folder of the store, made if missing.
        num_workers: processes, each with one volume in memory; 0 = in this one.
        patch_size: voxels; a volume with fewer slices is refused.

    Returns:
        the lines of the report, sorted by path.

    Raises:
        DatasetError: if `dataset_dir` is missing, or a datalist is malformed.
        StoreError: if the store cannot be written.
    """
    if not os.path.exists(dataset_dir):
        raise DatasetError(f"{dataset_dir}: no such file or folder; check DIR")
    cases, listed, lines = _find(dataset_dir)
    names = {patient_key(case["patient"]): case["patient"] for case in cases}
    try:
        (output / VOLUMES).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(output, error) from error
    for folder in (output, output / VOLUMES):
        remove_leftovers(folder)
    work = partial(_prepare_one, output / VOLUMES, dataset_dir, patch_size)
    results = run_tasks(work, cases, num_workers)
    lines.extend(tqdm(results, "prepare", len(cases), unit="volume", disable=None))
    lines = _numbered(PatchStore(output / VOLUMES, "--output"), sorted(lines))
    _write(output / REPORT, _as_csv(lines))
    volumes = [
        Prepared(f"{VOLUMES}/{line.file}", line.patient, names[line.patient], listed[line.path] or None)
        for line in lines
        if line.file
    ]
    with locked(output / DATALIST):  # the earlier report is read too
        lists = prepared_lists(volumes, output / DATALIST)
        _write(output / DATALIST, json.dumps(lists, indent=2) + "\n")
    return lines


def _find(dataset_dir: Path) -> tuple[list[Case], dict[str, str], list[Line]]:
    """Finds what to prepare, the list that each path belongs to, and lines for files that cannot be CT."""
    cases: dict[str, Case] = {}
    listed, lines = {}, []
    for found in find_volumes(existing_source(dataset_dir)):
        image = found.case["image"]
        path = _shown(Path(image), dataset_dir)
        if is_prepared(image):
            raise DatasetError(
                f"{dataset_dir}: holds prepared volumes, such as {path}; train with --dataset_dir, or "
                "prepare the data set that they were made from"
            )
        if found.entry.is_skipped and found.entry.refusal:
            lines.append(Line(path, found.entry.patient, "skipped", *found.entry.refusal))
        else:
            cases[image] = found.case
            listed[path] = found.listed
    return list(cases.values()), listed, lines


def _prepare_one(folder: Path, dataset_dir: Path, patch_size: int, case: Case) -> Line:
    path = _shown(Path(case["image"]), dataset_dir)
    patient = patient_key(case["patient"])
    try:
        header = read_header(case["image"])
        refusal = smaller_than_a_patch(Path(case["image"]), header.shape, [patch_size] * 3)
        if refusal:
            raise VolumeError(refusal.message, refusal.code)
        store = PatchStore(folder, "--output")
        is_new = not store.path_of(case["image"]).exists()
        volume = _stored(store, case)
    except VolumeError as error:
        return Line(path, patient, "refused", error.code, str(error))
    notes = "; ".join(filter(None, [volume.doubt, *header.notes, tilt_note(tilt_degrees(header.affine))]))
    code, made = "doubtful" if volume.doubt else "", "now" if is_new else "earlier"
    shape = "x".join(map(str, volume.shape))
    return Line(path, patient, "prepared", code, notes, shape, volume.path.name, made)


def _stored(store: PatchStore, case: Case) -> StoredVolume:
    """Makes the stored file of a volume and its companions, unless they exist."""
    (volume,) = store.prepare([case], WINDOW_HU, show_progress=False)
    try:
        volume.outside_window(*WINDOW_HU)  # counted while packing, but a kill may have lost the count
    except StoreError:
        if volume.path.exists():
            raise
        # another process has numbered the file meanwhile, which can happen only once
        (volume,) = store.prepare([case], WINDOW_HU, show_progress=False)
        volume.outside_window(*WINDOW_HU)
    return volume


def _numbered(store: PatchStore, lines: Iterable[Line]) -> list[Line]:
    """Numbers the files of the report's lines."""
    lines = list(lines)
    renamed = store.number_files(store.cache_dir / line.file for line in lines if line.file)
    return [
        line._replace(file=renamed[store.cache_dir / line.file].name) if line.file else line for line in lines
    ]


def _shown(path: Path, dataset_dir: Path) -> str:
    root = dataset_dir if dataset_dir.is_dir() else dataset_dir.parent
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _as_csv(lines: Iterable[Line]) -> str:
    text = io.StringIO()
    table = csv.writer(text)  # lines end as RFC 4180 says, so that names with line breaks are quoted
    # all but `made`, so that a killed and resumed run leaves the same report
    table.writerow(Line._fields[:-1])
    table.writerows(csv_cells(line[:-1]) for line in lines)
    return text.getvalue()


def _write(path: Path, text: str) -> None:
    try:
        write_text(path, text)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> StoreError:
    return StoreError(f"{path}: cannot be written ({error.strerror or error}); give another --output")


def _parser() -> CommandParser:
    parser = CommandParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("dataset_dir", nargs="?", type=Path, metavar="DIR", help="folder, file or datalist .json")
    add("--output", type=Path, metavar="STORE", help="folder of the store")
    add(
        "--num_workers",
        type=int,
        default=min(4, os.cpu_count() or 1),
        help="processes, 0 = in this one; default: up to 4",
    )
    add("--patch_size", type=int, default=4, help="refuse volumes with a shorter edge; default: 4, the least")
    add("--export", nargs=2, type=Path, metavar=("FILE", "OUT"), help="write a stored volume as NIfTI")
    return parser


if __name__ == "__main__":
    run_script(main)
