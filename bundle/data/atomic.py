"""Files and folders that other processes, and the next run, see complete or not at all."""

import os
import secrets
import shutil
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


@contextmanager
def complete_or_absent_folder(path: Path) -> Iterator[Path]:
    """Gives an empty folder beside `path` that becomes `path` when the block has succeeded.

    A folder cannot be replaced in one step: the old one steps aside first, and comes back if the new one
    cannot take its place. Killed between the two steps, the name is free and the old one lies beside it under
    a name that begins with `.replaced_`.

    Args:
        path: the folder to make or to replace; its parent exists.

    Yields:
        a hidden folder; removed with all it holds if the block raises.
    """
    token = secrets.token_hex(4)
    unfinished = path.with_name(f"{PREFIX}{token}_{path.name}")
    replaced = path.with_name(f".replaced_{token}_{path.name}")
    unfinished.mkdir()
    try:
        yield unfinished
        if path.exists():
            os.rename(path, replaced)
        try:
            os.rename(unfinished, path)
        except OSError:
            if replaced.exists():
                os.rename(replaced, path)
            raise
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Removes unfinished files that processes left which were killed, some minutes after their last byte."""
    for path in folder.glob(f"{PREFIX}*"):
        with suppress(OSError):  # another process may be removing it too
            if time.time() - path.stat().st_mtime > LEFTOVER_S:
                path.unlink()
