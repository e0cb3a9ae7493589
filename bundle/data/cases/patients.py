"""Which patients are kept, and which of them validate: by salted hashes of their names alone.

So volumes that come later move nobody from training to validation.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence

from bundle.run.names import ANY_NAME

logger = logging.getLogger(__name__)

VALIDATION_RATIO = 0.2
# Two salts: with one, the smallest hashes that `max_patients` takes would all be validation patients.
SPLIT_SALT = "ctpa_vqgan/validation"
SUBSET_SALT = "ctpa_vqgan/max_patients"

Case = dict[str, str]


def keep_patients(cases: Sequence[Case], max_patients: int | None) -> list[Case]:
    """The cases of the `max_patients` patients with the smallest hashes; all for None."""
    ranked = sorted({case["patient"] for case in cases}, key=lambda patient: _hash(SUBSET_SALT, patient))
    kept = set(ranked[:max_patients])
    return [case for case in cases if case["patient"] in kept]


def validation_patients(patients: set[str]) -> set[str]:
    """The patients whose hash falls into the first fifth; at least one of two or more on either side."""
    ranked = sorted(patients, key=lambda patient: _hash(SPLIT_SALT, patient))
    limit = int(VALIDATION_RATIO * 2**256)
    validation = [patient for patient in ranked if _hash(SPLIT_SALT, patient) < limit]
    if len(ranked) == 1:
        validation = ranked
    elif not validation:
        validation = ranked[:1]
        logger.warning("none of %d patients falls to validation; %s is taken", len(ranked), validation[0])
    elif len(validation) == len(ranked):
        validation = ranked[:-1]
        logger.warning("none of %d patients falls to training; %s is taken", len(ranked), ranked[-1])
    return set(validation)


def warn_of_shared_patients(split: Mapping[str, Sequence[Case]]) -> None:
    """Says so if a patient is in training and in validation."""
    shared = {case["patient"] for case in split["training"]} & {
        case["patient"] for case in split["validation"]
    }
    if shared:
        logger.warning(
            "VALIDATION IS NOT INDEPENDENT: patient(s) %s are in training and in validation; "
            "its figures say nothing about other patients",
            ", ".join(sorted(shared)),
        )


def _hash(salt: str, patient: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{salt}/{patient}".encode(errors=ANY_NAME)).digest())
