"""Reads files that gzip has packed any number of times, whatever their names say."""

import io
from pathlib import Path
from typing import Any, BinaryIO

from zlib_ng import zlib_ng

from bundle.run.files import open_regular

MAGIC = b"\x1f\x8b"
# A file packed twice is a mistake; one packed more often is an attack.
MAX_LAYERS = 2
PACKED_BYTES = 1 << 18
BUFFER_BYTES = 1 << 20
_WBITS = 31  # a gzip header, and its checksum compared at the end


class Unpacker(io.RawIOBase):
    """The unpacked bytes of a gzip file, up to the end of its last member; bytes after it are ignored.

    Reading raises EOFError if the file ends inside a member, and `zlib_ng.error` if it is damaged.

    Args:
        packed: the file, open at its start.
    """

    def __init__(self, packed: BinaryIO) -> None:
        self._packed, self._waiting = packed, b""
        self._member: Any = zlib_ng.decompressobj(_WBITS)

    def readable(self) -> bool:
        """Does what `io.RawIOBase` says."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Does what `io.RawIOBase` says."""
        view = memoryview(buffer).cast("B")
        while not self._member.eof or self._next_member():
            self._waiting = self._waiting or self._packed.read(PACKED_BYTES)
            if not self._waiting:
                raise EOFError("it ends inside its packed data")
            data = self._member.decompress(self._waiting, len(view))
            self._waiting = self._member.unconsumed_tail
            if data:
                view[: len(data)] = data
                return len(data)
        return 0

    def close(self) -> None:
        """Closes the packed file too."""
        self._packed.close()
        super().close()

    def _next_member(self) -> bool:
        rest = self._member.unused_data
        rest = rest if len(rest) >= len(MAGIC) else rest + self._packed.read(PACKED_BYTES)
        if not rest.startswith(MAGIC):
            return False
        self._member, self._waiting = zlib_ng.decompressobj(_WBITS), rest
        return True


def open_unpacked(path: Path) -> tuple[BinaryIO, int]:
    """Opens a file at its first unpacked byte.

    Args:
        path: the file.

    Returns:
        a stream of unpacked bytes, and how many times the file was packed.

    Raises:
        OSError: if it cannot be opened.
        EOFError: if it ends inside its packed data.
        zlib_ng.error: if it is damaged.
    """
    file: Any = open_regular(path, BUFFER_BYTES)
    n_layers = 0
    try:
        while n_layers < MAX_LAYERS and file.peek(len(MAGIC))[: len(MAGIC)] == MAGIC:
            file = io.BufferedReader(Unpacker(file), BUFFER_BYTES)
            n_layers += 1
    except BaseException:
        file.close()
        raise
    return file, n_layers
