"""Writes and reads the tables of an evaluation as CSV files."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bundle.emboli.readings import Reading
from bundle.reports.rows import Row
from bundle.run.atomic import write_text
from bundle.run.console import csv_cells
from bundle.run.files import open_regular_text

METRICS, EMBOLI, FALSE_EMBOLI = "metrics.csv", "emboli.csv", "false_emboli.csv"
EMBOLI_COLUMNS = (
    *("volume", "patient", "method", "site", "size_mm", "contrast", "place", "parity"),
    *("x", "y", "z", "x_mm", "y_mm", "z_mm", "blood_hu", "clot_contrast", "clot_loc_mm"),
    *("npw_original_with", "npw_original_without", "npw_with", "npw_without"),
)
FALSE_EMBOLI_COLUMNS = ("volume", "patient", "method", "x", "y", "z", "x_mm", "y_mm", "z_mm", "strength")


class TableError(ValueError):
    """A table of an evaluation that cannot be read; the message names it."""


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a table whole or not at all; NaN becomes an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(csv_cells(_cell(value) for value in row) for row in rows)
    write_text(path, text.getvalue())


def write_metrics(path: Path, rows: Sequence[Row]) -> None:
    """Writes `metrics.csv`, one figure per line."""
    write_table(path, Row._fields, rows)


def read_metrics(path: Path) -> list[Row]:
    """Reads `metrics.csv`.

    Raises:
        TableError: if it is missing or was not written by an evaluation.
    """
    try:
        with open_regular_text(path, newline="") as file:
            lines = list(csv.DictReader(file))
        return [
            Row(
                line["volume"],
                line["patient"],
                line["method"],
                line["region"],
                line["metric"],
                _number(line["value"]),
                _number(line["low"]),
                _number(line["high"]),
                int(line["n"]),
                line["note"],
            )
            for line in lines
        ]
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise _no_table(path, error) from error


class FalseEmbolusLine(NamedTuple):
    """A line of `false_emboli.csv`: whose, and the darkest voxel (X, Y, Z) in RAS axes."""

    volume: str
    method: str
    voxel: tuple[int, int, int]
    strength: float


def read_false_emboli(path: Path) -> list[FalseEmbolusLine]:
    """Reads `false_emboli.csv`.

    Raises:
        TableError: if it is missing or was not written by an evaluation.
    """
    try:
        with open_regular_text(path, newline="") as file:
            return [
                FalseEmbolusLine(
                    line["volume"],
                    line["method"],
                    (int(line["x"]), int(line["y"]), int(line["z"])),
                    float(line["strength"]),
                )
                for line in csv.DictReader(file)
            ]
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise _no_table(path, error) from error


def embolus_line(volume: str, patient: str, method: str, reading: Reading, at_mm: Sequence[float]) -> tuple:
    """Makes a line of `emboli.csv`.

    Args:
        volume: name.
        patient: whose.
        method: what made the reconstruction.
        reading: of one site at one contrast.
        at_mm: the site's place in RAS millimetres.
    """
    site = reading.site
    return (
        volume, patient, method, site.number, site.size_mm, reading.contrast,
        "lung" if site.is_in_lung else "central", site.parity, *site.centre, *at_mm, site.blood_hu,
        reading.clot_contrast, reading.clot_loc_mm, *reading.npw,
    )  # fmt: skip


def _no_table(path: Path, error: Exception) -> TableError:
    return TableError(
        f"{path}: is no table of an evaluation ({error!r:.200}); give the output folder of "
        "configs/evaluate.yaml"
    )


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.8g}"
    return value


def _number(text: str) -> float:
    return float(text) if text else math.nan
