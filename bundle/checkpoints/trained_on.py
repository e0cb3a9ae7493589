"""Keeps in a checkpoint which patients and volumes a network was trained on: hashes, no names.

The form is `{"patients": [...], "voxels": [...]}`: salted hashes of patients and fingerprints of voxels,
sorted, 16 hexadecimal digits each. An installed model keeps the fingerprints only. With the public default
salt, somebody who knows how a hospital numbers its patients could find a PatientID by trying all numbers.
"""

import re
from collections.abc import Mapping

TrainedOn = Mapping[str, list[str]]
KINDS = ("patients", "voxels")
_HASH = re.compile("[0-9a-f]{16}")


def joined(*parts: TrainedOn) -> dict[str, list[str]]:
    """Joins records into one that holds every hash in any of them, sorted."""
    return {kind: sorted({value for part in parts for value in part.get(kind, [])}) for kind in KINDS}


def without_patients(trained_on: TrainedOn) -> dict[str, list[str]]:
    """Removes the patients' hashes, which a model that is given away must not hold; fingerprints stay."""
    return joined({"voxels": trained_on.get("voxels", [])})


def is_sound(trained_on: object) -> bool:
    """Tells whether a value from a file has this form."""
    return isinstance(trained_on, dict) and all(
        kind in KINDS and isinstance(values, list) and all(_is_hash(value) for value in values)
        for kind, values in trained_on.items()
    )


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and _HASH.fullmatch(value) is not None
