"""Keeps beside a stored volume how many of its voxels lie outside HU windows."""

import errno
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from bundle.data.store.body import Outside
from bundle.run.atomic import UnwritableError, write_text
from bundle.run.files import open_regular

logger = logging.getLogger(__name__)


def window_key(hu_min: float, hu_max: float) -> str:
    """Returns the name of a window in the file."""
    return f"{hu_min:g} to {hu_max:g}"


def read_counts(path: Path) -> dict[str, Outside]:
    """Reads the counts that are known; none if the file beside the volume is missing or damaged."""
    try:
        with open_regular(path.with_suffix(".json")) as file:
            content = json.load(file)
        return {str(window): Outside(*map(int, counts)) for window, counts in content.items()}
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}


def write_counts(path: Path, counts: Mapping[str, Sequence[int]]) -> None:
    """Keeps the counts; a store that is read-only is counted again at every start."""
    try:
        write_text(path.with_suffix(".json"), json.dumps(counts))
    except UnwritableError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        logger.debug("%s: cannot be written; windows are counted at every start", path.parent)
