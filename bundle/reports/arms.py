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
from bundle.run.names import printable, shown

BASE = "base"
SAME = (BASE, "iterations", "seed", "batch_size", "patch_size", "vessel_ratio", "learning_rate", "data")
"""Facts of training in which an arm must not differ from its control."""
GAN_WEIGHTS = ("image_gan_weight", "video_gan_weight")
FILES = ("stem", "original", "reconstruction")
"""What volumes.json says of each volume."""


class Evaluated(NamedTuple):
    """One folder of configs/evaluate.yaml."""

    folder: Path
    rows: list[Row]
    about: dict[str, Any]
    volumes: dict[str, dict[str, str]]

    def kept(self, volume: str) -> Mapping[str, np.ndarray]:
        """Reads curves and patches of a volume; nothing if the evaluation kept none.

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


class Likeness(NamedTuple):
    """Says, in sentences, where arms differ, or may differ, in more than what is compared.

    Attributes:
        faults: what differs.
        unknown: what no file records, for example of pairs, or of checkpoints of older versions.
    """

    faults: list[str]
    unknown: list[str]


def likeness(read: Arms) -> Likeness:
    """Checks whether all arms started from the base checkpoint and saw the same data in the same order.

    Args:
        read: with the arms `base`, `other` and perhaps `control`.
    """
    faults, unknown = [], []
    trained = {name: arm for name, arm in read.items() if name != "base"}
    for name, arm in trained.items():
        for base, one in zip(read["base"], arm, strict=True):
            if BASE not in _recipe(one) or not base.about.get("model_sha256"):
                unknown.append(f"{_told(name, one)} does not say from which weights it was trained")
            elif _recipe(one)[BASE] != base.about["model_sha256"]:
                faults.append(f"{_told(name, one)} was not trained from {_told('base', base)}")
        models = [one.about["model_sha256"] for one in arm if one.about.get("model_sha256")]
        if len(set(models)) < len(models):
            faults.append(f"`--{name}` names one model more than once; each must have a seed of its own")
        faults += _wrong_weights(name, arm)
    return Likeness([*faults, *_unlike_control(read)], unknown)


def _unlike_control(read: Arms) -> Iterator[str]:
    """Names facts of training in which an arm differs from the control of the same seed."""
    for control, other in zip(read.get("control", ()), read["other"], strict=False):
        for fact in SAME:
            values = [_recipe(one).get(fact) for one in (control, other)]
            if None not in values and values[0] != values[1]:
                told = f"{shown(values[0])} in {_told('control', control)}, {shown(values[1])} in"
                yield f"`{fact}` of training must be the same, got {told} {_told('other', other)}"


def _wrong_weights(name: str, arm: Sequence[Evaluated]) -> Iterator[str]:
    """Names arms that were trained with discriminators although their option says without, or the reverse."""
    for one in arm:
        weights = [_recipe(one).get(weight) for weight in GAN_WEIGHTS]
        if None in weights:
            continue
        if (name == "other") != any(weights):
            way = "without" if name == "other" else "with"
            yield f"{_told(name, one)} was trained {way} discriminators"


def _recipe(one: Evaluated) -> Mapping[str, Any]:
    recipe = one.about.get("recipe")
    return recipe if isinstance(recipe, dict) else {}


def _told(name: str, one: Evaluated) -> str:
    return f"--{name} {printable(str(one.folder))}"


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
