"""What a checkpoint and a file of codes say of their generator, checked before anything is built from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bundle.run.names import printable

STRIDE = 4
"""Voxels per latent cell and axis, of every preset."""
NETWORK_SETTINGS = ("preset", "quantizer", "num_embeddings", "hu_min", "hu_max")
MOST_CODES = 65536  # indices are stored as uint16
HU = (-32768, 32767)  # volumes are stored as int16
SHOWN_CHARACTERS = 60


def network_settings(
    preset: str, quantizer: str, num_embeddings: int, hu_min: float, hu_max: float
) -> dict[str, Any]:
    """The settings of a generator as plain values, in the order of `NETWORK_SETTINGS`."""
    return {
        "preset": str(preset),
        "quantizer": str(quantizer),
        "num_embeddings": int(num_embeddings),
        "hu_min": float(hu_min),
        "hu_max": float(hu_max),
    }


def settings_fault(settings: Any) -> str | None:
    """Names the setting of a file that cannot be, its value and the rule; None if all are sound.

    A word is not compared with the presets that exist: a newer version may have written the file.
    """
    if not isinstance(settings, Mapping):
        return f"`network` must hold settings by name, got {shown(settings)}"
    for name in NETWORK_SETTINGS:
        if name in settings and not _keeps_its_rule(name, settings[name]):
            return f"`{name}` must be {RULES[name]}, got {shown(settings[name])}"
    low, high = settings.get("hu_min"), settings.get("hu_max")
    if low is not None and high is not None and not low < high:
        return f"`hu_min` must be below `hu_max`, got {low} and {high}"
    return None


def shown(value: Any) -> str:
    """A value out of a file on one line, not too long, without control characters."""
    text = printable(repr(value) if isinstance(value, str | int | float | None) else type(value).__name__)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


RULES = {
    "preset": "a word",
    "quantizer": "a word",
    "num_embeddings": f"a whole number from 2 to {MOST_CODES}",
    "hu_min": f"a number from {HU[0]} to {HU[1]}",
    "hu_max": f"a number from {HU[0]} to {HU[1]}",
}


def _keeps_its_rule(name: str, value: Any) -> bool:
    if name in ("preset", "quantizer"):
        return isinstance(value, str) and value.isidentifier()
    if name == "num_embeddings":
        return type(value) is int and 2 <= value <= MOST_CODES
    return type(value) in (int, float) and math.isfinite(value) and HU[0] <= value <= HU[1]
