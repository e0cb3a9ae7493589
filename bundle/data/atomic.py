"""Files that other processes, and the next run, see complete or not at all."""

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = ".unfinished_"
# Whoever still writes a file touches it every few seconds.
LEFTOVER_S = 600


@contextmanager
def complete_or_absent(path: Path) -> Iterator[Path]:
    """Gives a temporary path in the same folder and renames it to `path` when the block has succeeded.

    Several processes may write the same path at once: the last to finish wins, none sees a part.

    Args:
        path: the file to make or to replace.

    Yields:
        a hidden path of the same suffix that does not exist yet; removed if the block raises.
    """
    unfinished = path.with_name(f"{PREFIX}{secrets.token_hex(4)}_{path.name}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Removes unfinished files that processes left which were killed, some minutes after their last byte."""
    for path in folder.glob(f"{PREFIX}*"):
        with suppress(OSError):  # another process may be removing it too
            if time.time() - path.stat().st_mtime > LEFTOVER_S:
                path.unlink()
