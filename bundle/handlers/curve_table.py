"""Keeps the table of all curves, `metrics.csv`: a row per point, a column per curve."""

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bundle.handlers.codebook_window import CodebookWindow
from bundle.handlers.validation import ReconstructionQuality
from bundle.losses.discriminator import DiscriminatorObjective
from bundle.losses.objective import GeneratorObjective
from bundle.run.atomic import complete_or_absent, open_without_links
from bundle.run.files import open_regular, open_regular_text

APPEND = os.O_WRONLY | os.O_APPEND
LEARNING_RATE = "train/learning_rate"
TAGS = (
    *(f"train/{term}" for term in (*GeneratorObjective.TERMS, DiscriminatorObjective.TERM)),
    LEARNING_RATE,
    *CodebookWindow.CURVES,
    *ReconstructionQuality.CURVES,
)


def append_row(csv_path: Path, row: Mapping[str, Any]) -> None:
    """Adds a point, below the names of the columns if it is the first.

    A table that is there keeps its columns: another version of this program may have begun it.
    """
    columns = _columns_of(csv_path) if csv_path.exists() else []
    with open(open_without_links(csv_path, APPEND), "a", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns or ("iteration", "epoch", *TAGS), extrasaction="ignore")
        if not columns:
            table.writeheader()
        table.writerow(row)


def rows_of(csv_path: Path) -> list[dict[str, str]]:
    """Returns all rows, each as a dictionary by column; values are text."""
    with open_regular_text(csv_path, newline="") as file:
        return list(csv.DictReader(file))


def keep_rows_until(csv_path: Path, iteration: int, validated: bool = True) -> None:
    """Drops the rows after `iteration`, and a last row that was cut off while it was written.

    Args:
        csv_path: the table.
        iteration: the last one to keep.
        validated: whether to keep its validation figures too.
    """
    columns = _columns_of(csv_path)
    with open_regular(csv_path) as file:
        rows = file.read().splitlines(keepends=True)
    kept = [row for row in rows if row.endswith(b"\n") and not _is_later(row, columns, iteration, validated)]
    if kept != rows:
        with complete_or_absent(csv_path) as shorter:
            shorter.write_bytes(b"".join(kept))


def _columns_of(csv_path: Path) -> list[str]:
    with open_regular_text(csv_path, newline="") as file:
        return next(csv.reader(file), [])


def _is_later(row: bytes, columns: list[str], iteration: int, validated: bool) -> bool:
    values = row.strip().split(b",")
    if not values[0].isdigit() or int(values[0]) < iteration:
        return False
    is_validation = any(
        value for name, value in zip(columns, values, strict=False) if name.startswith("val/")
    )
    return int(values[0]) > iteration or (is_validation and not validated)
