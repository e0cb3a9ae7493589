"""Keeps the voxels' fingerprint beside a stored volume of version 0.1, which does not hold it."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bundle.data.volumes.fingerprint import is_fingerprint, voxel_fingerprint
from bundle.run.atomic import complete_or_absent
from bundle.run.files import open_regular_text

logger = logging.getLogger(__name__)

SUFFIX = ".voxels"


def kept_fingerprint(path: Path, read: Callable[[], np.ndarray]) -> str:
    """Returns the fingerprint; computes it from the voxels once and keeps it.

    Args:
        path: the file of the volume.
        read: reads its voxels, (X, Y, Z) in HU.
    """
    beside = path.with_suffix(SUFFIX)
    try:
        with open_regular_text(beside, "ascii") as file:
            known = file.read(100).strip()
    except (OSError, ValueError):
        known = ""
    if is_fingerprint(known):
        return known
    fingerprint = voxel_fingerprint(read())
    try:
        with complete_or_absent(beside) as unfinished:
            unfinished.write_text(fingerprint + "\n", encoding="ascii")
    except OSError as error:
        logger.debug("%s: cannot be written (%s); it is computed at every start", beside, error.strerror)
    return fingerprint
