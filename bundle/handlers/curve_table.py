"""Keeps the table of all curves, `metrics.csv`: a row per point, a column per curve."""

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bundle.run.atomic import complete_or_absent, open_without_links

APPEND = os.O_WRONLY | os.O_APPEND
TAGS = (
    "train/recon_loss",
    "train/commitment_loss",
    "train/perceptual_loss",
    "train/gen_loss",
    "train/disc_loss",
    "train/gan_feat_loss",
    "train/learning_rate",
    "codebook/usage",
    "codebook/perplexity",
    "codebook/restarts",
    "val/psnr",
    "val/ssim",
    "val/lpips",
    "val/mae_hu",
    "val/rmse_hu",
    "val/grid",
)


def append_row(csv_path: Path, row: Mapping[str, Any]) -> None:
    """Adds a point, below the names of the columns if it is the first."""
    is_new = not csv_path.exists() or csv_path.stat().st_size == 0
    with open(open_without_links(csv_path, APPEND), "a", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ("iteration", "epoch", *TAGS), extrasaction="ignore")
        if is_new:
            table.writeheader()
        table.writerow(row)


def rows_of(csv_path: Path) -> list[dict[str, str]]:
    """Returns all rows, each as a dictionary by column; values are text."""
    with csv_path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def keep_rows_until(csv_path: Path, iteration: int, validated: bool = True) -> None:
    """Drops the rows after `iteration`, and a last row that was cut off while it was written.

    Args:
        csv_path: the table.
        iteration: the last one to keep.
        validated: whether to keep its validation figures too.
    """
    rows = csv_path.read_bytes().splitlines(keepends=True)
    kept = [row for row in rows if row.endswith(b"\n") and not _is_later(row, iteration, validated)]
    if kept != rows:
        with complete_or_absent(csv_path) as shorter:
            shorter.write_bytes(b"".join(kept))


def _is_later(row: bytes, iteration: int, validated: bool) -> bool:
    number, *values = row.strip().split(b",")
    if not number.isdigit() or int(number) < iteration:
        return False
    has_validation = any(values[1 + TAGS.index("val/psnr") :])
    return int(number) > iteration or (has_validation and not validated)
