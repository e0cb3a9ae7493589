"""Decodes the slices of a series through SimpleITK (GDCM) in a process of its own; see `gdcm_process`."""

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from bundle.data.dicom.header import DicomError

PROGRAM = Path(__file__).with_name("gdcm_process.py")
# A slice takes milliseconds; JPEG 2000 on a busy machine a second.
SLICE_SECONDS = 30


class Decoder:
    """Starts the process on first use, again after it died, and again in a fork; one per thread."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None
        self.owner = 0
        self.is_idle = True

    def decode(self, files: Sequence[str], columns: int, rows: int) -> Generator[np.ndarray, None, None]:
        """Gives the slices one by one.

        Args:
            files: DICOM files whose headers were checked.
            columns: pixels of every slice.
            rows: pixels of every slice.

        Yields:
            (rows, columns) in HU, of the type that SimpleITK chose.

        Raises:
            DicomError: naming the file that cannot be decoded.
        """
        self.is_idle = False
        try:
            pipe = self._ask({"files": list(files), "columns": columns, "rows": rows})
            for path in files:
                yield self._slice(pipe, path, columns, rows)
            self.is_idle = True
        finally:
            if not self.is_idle:  # answers of this request may still be in the pipe
                self._end()

    def close(self) -> None:
        """Ends the process, if it is this process's own."""
        if self.owner == os.getpid():
            self._end()

    def _ask(self, request: dict) -> IO[bytes]:
        if self.process is None or self.owner != os.getpid() or self.process.poll() is not None:
            self._start()
        assert self.process and self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        return self.process.stdout

    def _start(self) -> None:
        self.owner = os.getpid()
        self.process = subprocess.Popen(
            # -P: its folder holds modules of ours that are not meant to be imported by bare names
            [sys.executable, "-P", str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # a terminal sends Ctrl-C to all processes of a command: slices at hand would seem to be damaged
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def _slice(self, pipe: IO[bytes], path: str, columns: int, rows: int) -> np.ndarray:
        assert self.process
        timer = threading.Timer(SLICE_SECONDS, self.process.kill)
        timer.start()
        try:
            line = pipe.readline()
            answer = json.loads(line) if line else {}
            if "dtype" in answer:
                dtype = np.dtype(answer["dtype"])
                content = pipe.read(rows * columns * dtype.itemsize)
                if len(content) == rows * columns * dtype.itemsize:
                    return np.frombuffer(content, dtype).reshape(rows, columns)
        finally:
            timer.cancel()
        self.is_idle = "error" in answer  # it said so, and waits for the next request
        what = answer.get("error", "the decoder did not survive it")
        raise DicomError(
            f"{path}: its pixels are damaged and cannot be decoded ({what}); copy it again", "damaged"
        )

    def _end(self) -> None:
        process, self.process = self.process, None
        if process is not None and self.owner == os.getpid():
            process.kill()
            process.communicate()


_of_thread = threading.local()


def thread_decoder() -> Decoder:
    """The decoder of this thread, made on first use and ended with Python."""
    if not hasattr(_of_thread, "decoder"):
        _of_thread.decoder = Decoder()
        atexit.register(_of_thread.decoder.close)
    return _of_thread.decoder
