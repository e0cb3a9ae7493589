"""Finds and opens regular files only: opening a pipe waits for ever, and opening a device may do anything."""

import errno
import io
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from monai.config import PathLike

logger = logging.getLogger(__name__)

# About ten times the largest public CT collection; `/` with its pseudo file systems has more.
MAX_FOLDERS = 500_000


class FolderError(ValueError):
    """A folder that cannot be searched; the message names it."""


def open_regular(path: PathLike, buffering: int = -1) -> BinaryIO:
    """Opens a regular file, or a link to one, for reading bytes; never waits for a pipe or a device.

    Args:
        path: the file.
        buffering: see `open`.

    Raises:
        OSError: if it is missing or cannot be opened; if it is a folder, pipe, device or socket.
    """
    _require_regular(os.stat(path).st_mode, path)
    # the path may have become a pipe since then
    return open(path, "rb", buffering=buffering, opener=open_without_waiting)  # noqa: SIM115


def open_regular_text(
    path: PathLike, encoding: str = "utf-8", newline: str | None = None
) -> io.TextIOWrapper:
    """Opens a regular file, or a link to one, for reading text; see `open_regular`.

    Args:
        path: the file.
        encoding: see `open`.
        newline: see `open`.

    Raises:
        OSError: see `open_regular`.
    """
    return io.TextIOWrapper(open_regular(path), encoding, newline=newline)


def open_without_waiting(path: PathLike, flags: int) -> int:
    """Opens a regular file and returns its descriptor; waits for no reader or writer of a pipe.

    Args:
        path: the file.
        flags: see `os.open`.

    Raises:
        OSError: if it cannot be opened, or is a folder, pipe, device or socket.
    """
    file = os.open(path, flags | os.O_NONBLOCK, 0o666)
    try:
        _require_regular(os.fstat(file).st_mode, path)
    except OSError:
        os.close(file)
        raise
    return file


def _require_regular(mode: int, path: PathLike) -> None:
    """Raises OSError if `st_mode` of an open or a named file is of anything but a regular file."""
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a pipe, a device or a socket and not a file", str(path))


def is_regular_or_missing(path: PathLike) -> bool:
    """Tells whether a path in a folder is a regular file, a link to one, or a link to nowhere.

    A link to nowhere may stand for a missing slice; the error comes when it is read.
    """
    return os.path.isfile(path) or (os.path.islink(path) and not os.path.exists(path))


def walk_files(folder: Path, max_folders: int = MAX_FOLDERS) -> Iterator[tuple[Path, list[Path]]]:
    """Yields each folder below `folder`, itself first, with its files by name.

    Hidden files and folders are left out, and so is everything but regular files and links to nowhere. Links
    to folders are followed, but never in circles.

    Args:
        folder: where to begin.
        max_folders: how many folders may be looked at.

    Raises:
        FolderError: if there are more folders than that.
    """
    visited: set[tuple[int, int]] = set()
    waiting = [folder]  # a list and no recursion, which a thousand nested folders would exhaust
    while waiting:
        parent = waiting.pop()
        try:
            status = os.stat(parent)
        except OSError as error:
            _warn_of_folder(error)
            continue
        if (status.st_dev, status.st_ino) in visited:
            continue
        if len(visited) == max_folders:
            raise FolderError(
                f"{folder}: holds more than {max_folders:,} folders; name a folder with less in it"
            )
        visited.add((status.st_dev, status.st_ino))
        try:
            names = sorted(name for name in os.listdir(parent) if not name.startswith("."))
        except OSError as error:
            _warn_of_folder(error)
            continue
        paths = [parent / name for name in names]
        yield parent, [path for path in paths if is_regular_or_missing(path)]
        waiting += [path for path in reversed(paths) if os.path.isdir(path)]


def files_in(folder: Path) -> list[Path]:
    """Returns the files of one folder, as `walk_files` gives them."""
    return next((paths for _, paths in walk_files(folder)), [])


def _warn_of_folder(error: OSError) -> None:
    logger.warning(
        "%s: cannot be listed (%s); what it holds is left out", error.filename, error.strerror or error
    )
