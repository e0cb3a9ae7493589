"""Writes the datalist of a prepared store: who trains and who validates."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bundle.data.cases.patients import validation_patients
from bundle.data.store.file import StoreError
from bundle.run.files import open_regular
from bundle.run.names import patient_hash

TESTING = ("testing", "test")


class Prepared(NamedTuple):
    """Describes a volume that is in the store.

    Attributes:
        image: its file, below the store.
        patient: hash that replaces the patient's name in the store.
        name: the patient's name in the data set, by which training without the store would split.
        listed: which list of the data set's own datalist names it; None if there is no datalist.
    """

    image: str
    patient: str
    name: str
    listed: str | None = None


def prepared_lists(volumes: Sequence[Prepared], path: Path) -> dict[str, list[dict[str, str]]]:
    """Splits as `split_cases` does for the data set itself; patients of an earlier run keep their side.

    Args:
        volumes: of the store.
        path: datalist of an earlier run, if there was one.

    Returns:
        `training`, and `validation` and `testing` where they are not empty.

    Raises:
        StoreError: if `path` exists and is not such a datalist.
    """
    earlier = _earlier(path)
    own_split = any(volume.listed == "validation" for volume in volumes)
    names = {volume.name for volume in volumes if volume.listed not in TESTING}
    # A single patient is left to `split_cases`, which warns that it is on both sides.
    validating = validation_patients(names) if len(names) > 1 and not own_split else set()
    sides = _sides([volume for volume in volumes if volume.listed not in TESTING], validating, earlier)
    lists: dict[str, list[dict[str, str]]] = {"training": [], "validation": [], "testing": []}
    for volume in volumes:
        if volume.listed in TESTING:
            side = "testing"
        elif own_split:
            side = volume.listed or "training"
        else:
            side = sides[volume.patient]
        lists[side].append({"image": volume.image, "patient": volume.patient})
    return {name: items for name, items in lists.items() if items or name == "training"}


def _sides(volumes: Sequence[Prepared], validating: set[str], earlier: dict[str, str]) -> dict[str, str]:
    """Returns the side of each patient; if one side would be empty, the first new patient goes there."""
    for volume in volumes:  # version 0.1 hashed the hash of a PatientID again
        before = patient_hash(volume.patient)
        if volume.patient not in earlier and before in earlier:
            earlier[volume.patient] = earlier[before]
    sides = {
        volume.patient: earlier.get(volume.patient, "validation" if volume.name in validating else "training")
        for volume in volumes
    }
    fresh = sorted(set(sides) - set(earlier))
    for side in ("validation", "training"):
        if len(sides) > 1 and fresh and side not in sides.values():
            sides[fresh[0]] = side
    return sides


def _earlier(path: Path) -> dict[str, str]:
    """Reads the side of each patient from the datalist of an earlier run."""
    if not path.exists():
        return {}
    try:
        with open_regular(path) as file:
            lists = json.load(file)
        return {item["patient"]: side for side in ("training", "validation") for item in lists.get(side, [])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{path}: is not a datalist of this program; move it away") from error
