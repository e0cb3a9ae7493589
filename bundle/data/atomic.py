"""Files that other processes, and the next run, see complete or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def complete_or_absent(path: Path) -> Iterator[Path]:
    """Gives a temporary path in the same folder and renames it to `path` when the block has succeeded.

    Several processes may write the same path at once: the last to finish wins, none sees a part.

    Args:
        path: the file to make or to replace.

    Yields:
        a hidden path of the same suffix that does not exist yet; removed if the block raises.
    """
    unfinished = path.with_name(f".unfinished_{secrets.token_hex(4)}_{path.name}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
