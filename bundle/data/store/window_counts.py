"""Keeps beside a stored volume how many of its voxels lie outside of HU windows."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from bundle.run.atomic import complete_or_absent
from bundle.run.files import open_regular

logger = logging.getLogger(__name__)


def window_key(hu_min: float, hu_max: float) -> str:
    """The name of a window in the file."""
    return f"{hu_min:g} to {hu_max:g}"


def read_counts(path: Path) -> dict[str, tuple[int, int]]:
    """What is known about windows; nothing if the file beside the volume is missing or damaged."""
    try:
        with open_regular(path.with_suffix(".json")) as file:
            content = json.load(file)
        return {str(window): (int(below), int(above)) for window, (below, above) in content.items()}
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}


def write_counts(path: Path, counts: Mapping[str, Sequence[int]]) -> None:
    """Keeps what is known; a store that may only be read is counted anew each time."""
    try:
        with complete_or_absent(path.with_suffix(".json")) as unfinished:
            unfinished.write_text(json.dumps(counts))
    except PermissionError:
        logger.debug("%s: cannot be written; windows are counted at every start", path.parent)
