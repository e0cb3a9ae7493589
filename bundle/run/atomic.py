"""Files and folders that other processes, and the next run, see complete or not at all."""

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UNFINISHED, REPLACED = ".unfinished_", ".replaced_"
LEFTOVER = re.compile(rf"({re.escape(UNFINISHED)}|{re.escape(REPLACED)})[0-9a-f]{{8}}_(.+)", re.DOTALL)
# Whoever still writes a file, or files into a folder, touches it every few seconds.
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
    unfinished = path.with_name(f"{UNFINISHED}{secrets.token_hex(4)}_{path.name}")
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
    a name that begins with `.replaced_`. What killed processes left in the same place is removed at the end.

    Args:
        path: the folder to make or to replace; its parent exists.

    Yields:
        a hidden folder; removed with all it holds if the block raises.
    """
    token = secrets.token_hex(4)
    unfinished = path.with_name(f"{UNFINISHED}{token}_{path.name}")
    replaced = path.with_name(f"{REPLACED}{token}_{path.name}")
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
        remove_leftovers(path.parent)  # `replaced` too
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Removes what processes left in a folder which were killed.

    What is unfinished goes some minutes after its last byte, what was replaced once its successor is there.
    """
    for path in folder.glob(".*"):
        found = LEFTOVER.fullmatch(path.name)
        if found is None:
            continue
        with suppress(OSError):  # another process may be removing it too
            if found[1] == REPLACED:
                is_left = path.with_name(found[2]).exists()
            else:
                is_left = time.time() - path.lstat().st_mtime > LEFTOVER_S
            if is_left:
                _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()
