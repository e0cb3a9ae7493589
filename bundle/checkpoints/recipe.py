"""Keeps in a checkpoint how its weights came to be, so that two ways to train can be compared fairly.

The form is a dictionary: what `configs/train.yaml` gives as `recipe` (seed, size of batches and patches,
weights of discriminators), `iterations` of this run, and `base`, the fingerprint of the weights that the run
started from, or "" if it began with random ones. `base` is missing if it is unknown.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

BASE, ITERATIONS = "base", "iterations"
MOST_FACTS, LONGEST_LIST = 32, 8
_NAME = re.compile("[a-z_0-9]{1,40}")
_FINGERPRINT = re.compile("(?:[0-9a-f]{64})?")


def plain_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings as a checkpoint may hold them: numbers, lists of numbers, or None."""
    return {name: list(value) if isinstance(value, list | tuple) else value for name, value in facts.items()}


def is_sound(recipe: object) -> bool:
    """Tells whether a value from a file has this form."""
    return (
        isinstance(recipe, dict)
        and len(recipe) <= MOST_FACTS
        and all(
            isinstance(name, str) and _NAME.fullmatch(name) is not None and _is_fact(name, value)
            for name, value in recipe.items()
        )
    )


def _is_fact(name: str, value: object) -> bool:
    if name == BASE:
        return isinstance(value, str) and _FINGERPRINT.fullmatch(value) is not None
    if isinstance(value, list):
        return len(value) <= LONGEST_LIST and all(map(_is_number, value))
    return value is None or _is_number(value)


def _is_number(value: object) -> bool:
    return isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))
