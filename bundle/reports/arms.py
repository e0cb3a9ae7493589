"""Reads the evaluations of several arms, and finds the volumes and emboli that all of them hold.

An arm is a way to train, with one folder of configs/evaluate.yaml per training seed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bundle.reports.kept import read_kept
from bundle.reports.rows import MODEL, PAIRS, Row
from bundle.reports.tables import METRICS, TableError, read_metrics
from bundle.run.files import open_regular_text

FILES = ("stem", "original", "reconstruction")
"""What volumes.json says of each volume."""


class Evaluated(NamedTuple):
    """One folder of configs/evaluate.yaml."""

    folder: Path
    rows: list[Row]
    about: dict[str, Any]
    volumes: dict[str, dict[str, str]]

    def kept(self, volume: str) -> Mapping[str, np.ndarray]:
        """Curves and patches of a volume; none where the evaluation kept none.

        Raises:
            KeptError: if they cannot be used.
        """
        return read_kept(self.folder, self.volumes[volume]["stem"])

    @property
    def judged(self) -> list[Row]:
        """Returns the rows of the model, without those of codecs."""
        return [row for row in self.rows if row.method in (MODEL, PAIRS)]


Arms = Mapping[str, Sequence[Evaluated]]
"""The evaluations of each arm by its name, in the order of training seeds."""


def read_evaluation(folder: Path) -> Evaluated:
    """Reads an output folder of configs/evaluate.yaml.

    Raises:
        TableError: if it holds none, or one that cannot be read.
    """
    rows = read_metrics(folder / METRICS)
    try:
        with open_regular_text(folder / "summary.json") as file:
            about = json.load(file)["about"]
        with open_regular_text(folder / "volumes.json") as file:
            volumes = json.load(file)
        if not all(isinstance(files[part], str) for files in volumes.values() for part in FILES):
            raise ValueError("volumes.json must name files")
        return Evaluated(folder, rows, dict(about), dict(volumes))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TableError(
            f"{folder}: its summary.json or volumes.json cannot be read ({error!r:.200}); evaluate again"
        ) from error


class SharedClot(NamedTuple):
    """An inserted embolus that all arms hold: its volume, its row in each arm's arrays, its contrast kept."""

    volume: str
    row: dict[str, int]
    contrast: dict[str, float]


def shared_clots(read: Arms) -> Iterator[SharedClot]:
    """Finds the inserted emboli of the first training seed that every arm keeps."""
    for volume in shared_volumes(read):
        kept = {name: arm[0].kept(volume) for name, arm in read.items()}
        rows = {
            name: {int(site): n for n, site in enumerate(one.get("clot_site", ()))}
            for name, one in kept.items()
        }
        for site in sorted(set.intersection(*map(set, rows.values()))):
            at = {name: of_arm[site] for name, of_arm in rows.items()}
            contrast = {name: float(one["clot_contrast"][at[name]]) for name, one in kept.items()}
            yield SharedClot(volume, at, contrast)


def shared_volumes(read: Arms) -> list[str]:
    """Names the volumes of the first training seed that every arm evaluated."""
    arms = [arm[0].volumes for arm in read.values()]
    return [name for name in arms[-1] if all(name in volumes for volumes in arms)]
