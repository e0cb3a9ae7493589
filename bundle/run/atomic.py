"""Writes files and folders so that others, and the next run, see them complete or not at all."""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bundle.run.files import open_without_waiting

UNFINISHED, REPLACED = ".unfinished_", ".replaced_"
LEFTOVER = re.compile(rf"({re.escape(UNFINISHED)}|{re.escape(REPLACED)})[0-9a-f]{{8}}_(.+)", re.DOTALL)
# A process that still writes a file, or files into a folder, changes it every few seconds.
LEFTOVER_S = 600
ADVICE = "make room or give another --output_dir"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class UnwritableError(OSError):
    """A file or folder that cannot be written; the message names it, the reason and what to do."""

    def __init__(self, path: Path, error: OSError, advice: str = ADVICE) -> None:
        super().__init__(error.errno, error.strerror or str(error))
        self.path, self.advice = path, advice

    def __str__(self) -> str:
        return f"{self.path}: cannot be written ({self.strerror}); {self.advice}"


@contextmanager
def complete_or_absent(path: Path, advice: str = ADVICE, durable: bool = False) -> Iterator[Path]:
    """Gives a temporary path in the same folder and renames it to `path` when the block has succeeded.

    Several processes may write the same path at once: the last to finish wins, none sees a part.

    Args:
        path: the file to make or to replace; its folder is made if missing.
        advice: what the user can do if it cannot be written.
        durable: whether the file must survive a power cut from here on.

    Yields:
        a hidden path of the same suffix that does not exist yet; removed if the block raises.

    Raises:
        UnwritableError: if there is no room or no permission; what `path` held before is still there.
    """
    unfinished = path.with_name(f"{UNFINISHED}{secrets.token_hex(4)}_{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _require_replaceable(path)
        yield unfinished
        if durable:
            _flush(unfinished)
        rename(unfinished, path, durable)
    except OSError as error:
        _raise_told(error, path, unfinished, advice)
        raise
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str, advice: str = ADVICE) -> None:
    """Writes a text file as UTF-8, whole or not at all; parts of names that are not UTF-8 become escapes.

    Raises:
        UnwritableError: see `complete_or_absent`.
    """
    with complete_or_absent(path, advice) as unfinished:
        unfinished.write_bytes(text.encode(errors="backslashreplace"))


def rename(source: Path, target: Path, durable: bool = True) -> None:
    """Renames a file within its folder; if `durable`, a power cut does not undo it."""
    os.replace(source, target)
    if durable:
        _flush(target.parent)


@contextmanager
def complete_or_absent_folder(path: Path, advice: str = ADVICE) -> Iterator[Path]:
    """Gives an empty folder beside `path` that becomes `path` when the block has succeeded.

    A folder cannot be replaced in one step. The old one is renamed first, and renamed back if the new one
    cannot take its place. After a kill between the two steps the old one lies beside the free name, under a
    name that begins with `.replaced_`. At the end, leftovers of killed processes beside it are removed.

    Args:
        path: the folder to make or to replace; its parent is made if missing.
        advice: what the user can do if it cannot be written.

    Yields:
        a hidden folder; removed with all it holds if the block raises.

    Raises:
        UnwritableError: if there is no room or no permission; what `path` held before is still there.
    """
    token = secrets.token_hex(4)
    unfinished = path.with_name(f"{UNFINISHED}{token}_{path.name}")
    replaced = path.with_name(f"{REPLACED}{token}_{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.mkdir()
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
    except OSError as error:
        _raise_told(error, path, unfinished, advice)
        raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def remove_leftovers(folder: Path, age_s: float = LEFTOVER_S) -> None:
    """Removes leftovers of killed processes.

    Unfinished files go some minutes after their last byte, replaced ones once their successor is there.
    Minutes are counted by the clock that dates the folder's files; on a network it is another machine's.

    Args:
        folder: may be missing.
        age_s: seconds without a change; below 0 in a folder that this process has locked.
    """
    for path in folder.glob(".*"):
        found = LEFTOVER.fullmatch(path.name)
        if found is None:
            continue
        with suppress(OSError):  # another process may be removing it too
            if found[1] == REPLACED:
                is_left = path.with_name(found[2]).exists()
            else:
                is_left = _now_in(folder) - path.lstat().st_mtime > age_s
            if is_left:
                _remove(path)


def open_without_links(path: Path, flags: int) -> int:
    """Opens a file of this project for writing, but not a link, which could lead to another's file.

    It never waits for the reader of a pipe.

    Args:
        path: the file.
        flags: of `os.open`; the file is made if missing.

    Raises:
        UnwritableError: if it is a link, a pipe or a device, or cannot be written.
    """
    try:
        return open_without_waiting(path, flags | os.O_CREAT | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.ELOOP:
            error = OSError(errno.ELOOP, "it is a link to another file")
            raise UnwritableError(path, error, "remove the link or give another --output_dir") from None
        raise UnwritableError(path, error) from error


def free_bytes(folder: Path) -> int:
    """Returns the free bytes on the disk of a folder, which need not exist yet.

    Raises:
        OSError: if the disk cannot be asked.
    """
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _require_replaceable(path: Path) -> None:
    """Refuses to put a file in the place of a device, a pipe or a folder; a link is replaced itself."""
    if path.exists() and not path.is_symlink() and not path.is_file():
        raise OSError(errno.EINVAL, "it is a folder, a device or a pipe and not a file", str(path))


def _raise_told(error: OSError, path: Path, unfinished: Path, advice: str) -> None:
    """Raises an error that names the user's file if writing failed; does nothing if reading failed."""
    name = str(error.filename)
    is_write = name in (str(path), str(path.parent)) or name.startswith(str(unfinished))
    if not isinstance(error, UnwritableError) and (error.errno in _NO_ROOM or is_write):
        raise UnwritableError(path, error, advice) from error


def _now_in(folder: Path) -> float:
    os.utime(folder)
    return folder.stat().st_mtime


def _flush(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()
