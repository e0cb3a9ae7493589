"""Shows what a data set holds, and what of it would be refused, before anything runs.

    python -m scripts.inspect DIR
    python -m scripts.inspect DIR --patch_size 128 --csv FILE

One row per NIfTI file and per DICOM series. The exit code is 0 if all can be used, 1 if not. Volumes of any
number of slices work as they are: nothing is resampled, cropped or filled up.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from bundle.data.cases import DatasetError
from bundle.data.datalist import dataset_root
from bundle.data.dicom import find_one_series, series_in, walk_files
from bundle.data.header import is_series
from bundle.data.nifti import SUFFIXES
from bundle.data.summary import VolumeSummary, summarise_volume
from bundle.launch import report_error

COLUMNS = ("name", "shape", "spacing mm", "axes", "HU", "padding", "contrast", "usable")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of this module; returns the exit code.

    Raises:
        DatasetError: a folder that is missing or empty.
    """
    given = _parse(arguments)
    paths = find_paths(given.dir)
    patch_size = (
        tuple(given.patch_size) * (3 if len(given.patch_size) == 1 else 1) if given.patch_size else None
    )
    summaries = summarise_all(paths, patch_size, given.num_workers)
    root = Path(dataset_root(given.dir))
    print(table(summaries, root))
    n_usable = sum(summary.is_usable for summary in summaries)
    print(f"{n_usable} of {len(summaries)} volumes can be used, with any number of slices and as they are")
    if given.csv:
        write_csv(given.csv, summaries)
    return 0 if n_usable == len(summaries) else 1


def find_paths(source: Path) -> list[str]:
    """NIfTI files and DICOM series, refused ones too, below a folder or of one file.

    Raises:
        DatasetError: if there is none.
    """
    if source.is_file() and source.name.lower().endswith(SUFFIXES):
        return [str(source)]
    if source.is_file() and is_series(source):
        return [find_one_series(source).path]
    paths = []
    for parent, files in walk_files(source):
        paths += [str(path) for path in files if path.name.lower().endswith(SUFFIXES)]
        paths += [series.path for series in series_in(parent, files)]
    if not paths:
        raise DatasetError(f"{source}: holds no NIfTI file and no DICOM series; give another folder")
    return sorted(paths)


def summarise_all(
    paths: Sequence[str], patch_size: Sequence[int] | None, num_workers: int
) -> list[VolumeSummary]:
    """Reads all volumes, several at a time, in the order of `paths`."""
    # threads: unpacking leaves Python's lock alone, and GDCM has a process per thread anyway
    with ThreadPoolExecutor(num_workers) as pool:
        results = pool.map(summarise_volume, paths, [patch_size] * len(paths))
        return list(tqdm(results, "inspect", len(paths), unit="volume", disable=None))


def table(summaries: Iterable[VolumeSummary], root: Path) -> str:
    """The summaries as aligned text, names relative to `root`; a refusal stands below its row."""
    rows = [COLUMNS, *(_row(summary, root) for summary in summaries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def write_csv(path: Path, summaries: Iterable[VolumeSummary]) -> None:
    """Writes one line per volume with every figure in full."""
    names = [field.name for field in dataclasses.fields(VolumeSummary)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([getattr(summary, name) for name in names] for summary in summaries)


def _row(summary: VolumeSummary, root: Path) -> tuple[str, ...]:
    path = Path(summary.path)
    name = str(path.relative_to(root)) if path.is_relative_to(root) and path != root else path.name
    usable = "yes" if summary.is_usable else f"no ({summary.code}): {_words(summary)}"
    if summary.hu_range is None or summary.shape is None or summary.spacing_mm is None:
        return (name, "", "", "", "", "", "", usable)
    return (
        name,
        " x ".join(map(str, summary.shape)),
        " x ".join(f"{length:.3g}" for length in summary.spacing_mm),
        summary.axes,
        "{:g} to {:g}".format(*summary.hu_range),
        f"{summary.padding_share:.1%}",
        ("seen" if summary.is_contrast_seen else "not seen") + (", tag" if summary.has_contrast_tag else ""),
        usable,
    )


def _words(summary: VolumeSummary) -> str:
    return summary.message.removeprefix(f"{summary.path}: ")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.inspect", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("dir", type=Path, metavar="DIR", help="folder of NIfTI files and DICOM folders, or one file")
    add("--patch_size", type=int, nargs="+", metavar="N", help="voxels per axis, one or three numbers")
    add("--csv", type=Path, metavar="FILE", help="write the table there too, with every figure in full")
    add("--num_workers", type=int, default=min(4, os.cpu_count() or 1), help="volumes to read at a time")
    given = parser.parse_args(arguments)
    if given.num_workers < 1:
        parser.error(f"`num_workers` must be at least 1, got {given.num_workers}; give the volumes at a time")
    if given.patch_size and (len(given.patch_size) not in (1, 3) or min(given.patch_size) < 1):
        parser.error(f"`patch_size` must be one or three numbers above 0, got {given.patch_size}")
    if not given.dir.exists():
        parser.error(f"{given.dir}: no such file or folder; check the path")
    return given


if __name__ == "__main__":
    sys.excepthook = report_error
    sys.exit(main())
