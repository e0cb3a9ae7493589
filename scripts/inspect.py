"""Shows what a data set holds, and which volumes would be refused, before anything runs.

    python -m scripts.inspect DIR
    python -m scripts.inspect DIR --patch_size 128 --csv FILE

DIR is a folder of NIfTI files and DICOM series, one of them, a datalist .json or a prepared store. There is
one row per NIfTI file and per DICOM series. The notes below the table say why a volume cannot be used, or why
its values are probably not HU ("doubtful"). "contrast" says whether filled vessels are visible in the chest,
and whether the DICOM header names a contrast agent. The exit code is 0 if all can be used, else 1; series
that cannot be CT volumes, such as localizers, do not count. Volumes with any number of slices can be used as
they are: nothing is resampled, cropped or padded.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from bundle.data.cases.find import DatasetError, find_volumes
from bundle.data.cases.split import dataset_root, existing_source
from bundle.data.cases.summary import VolumeSummary, summarise_volume
from bundle.data.dicom.screening import SKIPPED
from bundle.data.volumes.formats import described_formats
from bundle.data.volumes.geometry import tilt_note
from bundle.run.atomic import write_text
from bundle.run.console import CommandParser, csv_cells, tell
from bundle.run.names import printable
from bundle.run.record import run_script

COLUMNS = ("name", "voxels", "spacing mm", "axes", "HU", "below -1024", "contrast", "usable")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line of this module; returns the exit code.

    Raises:
        DatasetError: if the folder is missing or empty.
    """
    given = _parse(arguments)
    paths = find_paths(given.dir)
    patch_size = (
        tuple(given.patch_size) * (3 if len(given.patch_size) == 1 else 1) if given.patch_size else None
    )
    summaries = summarise_all(paths, patch_size, given.num_workers)
    root = Path(dataset_root(given.dir))
    tell(table(summaries, root))
    verdicts = [_verdict(summary) for summary in summaries]
    n_skipped, n_doubtful = verdicts.count("skipped"), verdicts.count("doubtful")
    n_usable = verdicts.count("yes") + n_doubtful
    tell(
        f"\n{n_usable} of {len(summaries) - n_skipped} volumes can be used as they are"
        + (f"; {n_doubtful} of them doubtful, see the notes" if n_doubtful else "")
        + (f"; skipped, since they cannot be CT volumes: {n_skipped}" if n_skipped else "")
    )
    if given.csv:
        write_csv(given.csv, summaries)
    return 1 if "no" in verdicts else 0


def find_paths(source: Path) -> list[str]:
    """Finds NIfTI files and DICOM series, also refused ones: below a folder, in a datalist, or one file.

    Raises:
        DatasetError: if there is none.
    """
    paths = {found.case["image"] for found in find_volumes(existing_source(source))}
    if not paths:
        raise DatasetError(f"{source}: holds no volume ({described_formats()}); give another folder")
    return sorted(paths)


def summarise_all(
    paths: Sequence[str], patch_size: Sequence[int] | None, num_workers: int
) -> list[VolumeSummary]:
    """Reads all volumes, several at a time, in the order of `paths`."""
    # threads, since unpacking releases Python's lock and GDCM has its own process per thread
    with ThreadPoolExecutor(num_workers) as pool:
        results = pool.map(summarise_volume, paths, [patch_size] * len(paths))
        return list(tqdm(results, "inspect", len(paths), unit="volume", disable=None))


def table(summaries: Iterable[VolumeSummary], root: Path) -> str:
    """Returns the summaries as aligned text, names relative to `root`, with one line per note below."""
    summaries = list(summaries)
    rows = [COLUMNS, *(_row(summary, root) for summary in summaries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    notes = [
        f"  {_name(summary, root)}: {printable(note)}" for summary in summaries if (note := _note(summary))
    ]
    return "\n".join([*lines, *(["", "notes:", *notes] if notes else [])])


def write_csv(path: Path, summaries: Iterable[VolumeSummary]) -> None:
    """Writes one line per volume with every figure in full."""
    names = [field.name for field in dataclasses.fields(VolumeSummary)]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(names)
    writer.writerows(csv_cells(getattr(summary, name) for name in names) for summary in summaries)
    write_text(path, text.getvalue(), "make room or give another --csv")


def _row(summary: VolumeSummary, root: Path) -> tuple[str, ...]:
    name, verdict = _name(summary, root), _verdict(summary)
    if summary.hu_range is None or summary.shape is None or summary.spacing_mm is None:
        return (name, *["-"] * (len(COLUMNS) - 2), verdict)
    return (
        name,
        " x ".join(map(str, summary.shape)),
        " x ".join(f"{length:.3f}" for length in summary.spacing_mm),
        summary.axes,
        "{:g} to {:g}".format(*summary.hu_range),
        f"{summary.padding_share:.1%}",
        ("visible" if summary.is_contrast_seen else "not visible")
        + (", in header" if summary.has_contrast_tag else ""),
        verdict,
    )


def _name(summary: VolumeSummary, root: Path) -> str:
    path = Path(summary.path)
    is_below = path.is_relative_to(root) and path != root
    return printable(str(path.relative_to(root)) if is_below else path.name)


def _verdict(summary: VolumeSummary) -> str:
    if summary.is_usable:
        return "doubtful" if summary.doubt else "yes"
    return "skipped" if summary.code in SKIPPED else "no"


def _note(summary: VolumeSummary) -> str:
    """Says why it cannot be used, or what is odd about it."""
    if not summary.is_usable:
        return f"{summary.message.removeprefix(f'{summary.path}: ')} [{summary.code}]"
    return "; ".join(filter(None, [summary.doubt, summary.notes, tilt_note(summary.tilt_degrees)]))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("dir", type=Path, metavar="DIR", help="folder, one volume, datalist .json or prepared store")
    add("--patch_size", type=int, nargs="+", metavar="N", help="voxels per axis, one or three numbers")
    add("--csv", type=Path, metavar="FILE", help="write the table there too, with every figure in full")
    add("--num_workers", type=int, default=min(4, os.cpu_count() or 1), help="volumes to read at a time")
    given = parser.parse_args(arguments)
    if given.num_workers < 1:
        parser.error(f"`num_workers` must be at least 1, got {given.num_workers}; give the volumes at a time")
    if given.patch_size and (len(given.patch_size) not in (1, 3) or min(given.patch_size) < 1):
        parser.error(f"`patch_size` must be one or three numbers above 0, got {given.patch_size}")
    if not os.path.exists(given.dir):
        parser.error(f"{given.dir}: no such file or folder; check the path")
    if given.csv and (given.csv.is_dir() or not given.csv.parent.is_dir()):  # before reading all
        parser.error(f"`csv` must be a file in a folder that exists, got {given.csv}; make the folder")
    return given


if __name__ == "__main__":
    run_script(main)
