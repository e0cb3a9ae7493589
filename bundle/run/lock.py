"""Locks folders and files; a lock ends with the process that holds it, however that ends.

They are POSIX record locks. Forks do not share them, and a process that opens and closes its own lock file
loses the lock. Over NFS they hold between machines if the server passes them on. On a file system without
locks the run goes on without this protection, and a warning says so.
"""

import atexit
import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from bundle.run.files import open_without_waiting
from bundle.run.names import printable

logger = logging.getLogger(__name__)

FOLDER_LOCK = ".lock"
FILE_LOCK = ".lock_"
_TAKEN = (errno.EAGAIN, errno.EACCES)
_UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_MAX_HOLDER_BYTES = 500
_held: dict[Path, int] = {}  # lock files that this process holds, each of them open


class FolderInUseError(RuntimeError):
    """A folder that another process is writing; the message names that process."""


def lock_folder(folder: Path, part: str = "") -> None:
    """Claims a folder for this process until `release_folder` or its end; claiming it twice does nothing.

    Args:
        folder: exists; gets a file `.lock` with one line about this process.
        part: share of the work in it, such as `shard_3_of_8`; processes with other parts may work there too.

    Raises:
        FolderInUseError: if another process holds it.
        OSError: if the lock file cannot be made.
    """
    path = _lock_path(folder, part)
    if path in _held:
        return
    file = _locked_file(path, wait=False)
    if file is None:
        holder = printable(_holder(path))
        what = f"{part.replace('_', ' ')} " if part else ""
        raise FolderInUseError(
            f"{folder}: {holder} is writing {what}there; wait until it ends, or give another --output_dir"
        )
    since = datetime.now(UTC).isoformat(timespec="seconds")
    with suppress(OSError):  # on a full disk the lock holds all the same
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode())
    _held[path] = file
    atexit.register(_release_at_exit, folder, part, os.getpid())


def _lock_path(folder: Path, part: str) -> Path:
    return folder.resolve() / (f"{FOLDER_LOCK}_{part}" if part else FOLDER_LOCK)


def _release_at_exit(folder: Path, part: str, owner: int) -> None:
    """Removes the lock file of a process that ends by an error; a fork of it owns nothing."""
    if os.getpid() == owner:
        release_folder(folder, part)


def release_folder(folder: Path, part: str = "") -> None:
    """Releases a folder, or a part of it, if this process holds it."""
    path = _lock_path(folder, part)
    file = _held.pop(path, None)
    if file is not None:
        _release(path, file)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lets one process at a time make a file; the others wait for it.

    Args:
        path: the file; need not exist. Its folder does.
    """
    lock = path.with_name(f"{FILE_LOCK}{path.name}")
    file = _locked_file(lock, wait=True)
    try:
        yield
    finally:
        if file is not None:
            _release(lock, file)


def _locked_file(path: Path, wait: bool) -> int | None:
    """Returns an open, locked file; None if another process holds it."""
    while True:
        file = open_without_waiting(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _UNKNOWN:
                logger.warning(
                    "%s: this file system knows no locks; start no second process there", path.parent
                )
                return file
            os.close(file)
            if error.errno in _TAKEN:
                return None
            raise
        with suppress(FileNotFoundError):
            # the holder before may have removed the file between our two calls; its lock would protect nobody
            if os.path.samestat(os.fstat(file), os.stat(path, follow_symlinks=False)):
                return file
        os.close(file)


def _release(path: Path, file: int) -> None:
    with suppress(OSError):
        path.unlink()  # before the lock is released, so that a process that waits for it notices
    os.close(file)


def _holder(path: Path) -> str:
    with suppress(OSError, ValueError):
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            told = os.read(file, _MAX_HOLDER_BYTES).decode(errors="replace").strip()
        finally:
            os.close(file)
        if told:
            return told
    return "another process"
