"""A process of its own in which GDCM decodes DICOM slices; run by `bundle.data.dicom.pixels`, never imported.

GDCM and its codecs are C++ that trusts what it reads: damaged bytes can end the process, print, loop, or
allocate what a codestream claims. Here that ends this process alone.

In: one line of JSON per request, `{"files": [path, ...], "columns": int, "rows": int}`.
Out, per file: one line of JSON, `{"dtype": name}` and then rows x columns numbers in HU, or `{"error": text}`
and nothing more of that request.
"""

import json
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
import SimpleITK as sitk

# Far more than one slice needs, in address space; a slice of 8192 x 8192 takes 1 GB as float64 twice.
ROOM_BYTES = 4 << 30


def main() -> None:
    """Answers requests until the other side closes the pipe."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever C++ prints must not get among the answers
    _limit_memory()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        for path in request["files"]:
            if not _answer(answers, path, request["columns"], request["rows"]):
                break
        answers.flush()


def _limit_memory() -> None:
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM_BYTES, used + ROOM_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _answer(answers: BinaryIO, path: str, columns: int, rows: int) -> bool:
    try:
        slice_hu = _decode(path, columns, rows)
    except Exception as error:  # SimpleITK raises RuntimeError, but a message is owed for anything
        answers.write(json.dumps({"error": type(error).__name__}).encode() + b"\n")
        return False
    answers.write(json.dumps({"dtype": slice_hu.dtype.str}).encode() + b"\n")
    answers.write(slice_hu.tobytes())
    return True


def _decode(path: str, columns: int, rows: int) -> np.ndarray:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    with _named(path) as name:
        reader.SetFileName(name)
        return _pixels(reader, columns, rows)


@contextmanager
def _named(path: str) -> Iterator[str]:
    """A name of a file that C++ can be given: one that is no UTF-8 is opened here."""
    if not any("\udc80" <= letter <= "\udcff" for letter in path):
        yield path
        return
    file = os.open(path, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{file}"
    finally:
        os.close(file)


def _pixels(reader: sitk.ImageFileReader, columns: int, rows: int) -> np.ndarray:
    reader.ReadImageInformation()
    size = [length for length in reader.GetSize() if length != 1]
    if reader.GetNumberOfComponents() != 1 or size != [n for n in (columns, rows) if n != 1]:
        raise ValueError("another size than the header's")
    slice_hu = sitk.GetArrayFromImage(reader.Execute()).reshape(rows, columns)
    return np.ascontiguousarray(slice_hu)


if __name__ == "__main__":
    main()
