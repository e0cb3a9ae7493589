"""A process of its own in which GDCM decodes DICOM slices; run by `bundle.data.dicom.pixels`, never imported.

GDCM and its codecs are C++ that trusts what it reads: damaged bytes can end the process, print, loop, or
allocate what a codestream claims. Here such bytes end only this process.

In, per slice: the length of a DICOM file as 8 bytes, little endian, and the file.
Out, per slice: one line of JSON, `{"dtype": name, "size": n}` and then n stored values, or `{"error": text}`.
"""

import json
import os
import resource
import struct
import sys

import numpy as np
import SimpleITK as sitk

# Far more than one slice needs, in address space; a slice of 8192 x 8192 takes 1 GB as float64 twice.
ROOM_BYTES = 4 << 30


def main() -> None:
    """Answers until the other side closes the pipe."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever C++ prints must not get among the answers
    _limit_memory()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    file = os.memfd_create("slice")
    while length := sys.stdin.buffer.read(8):
        os.ftruncate(file, 0)
        with os.fdopen(os.dup(file), "wb") as copy:
            copy.seek(0)
            copy.write(sys.stdin.buffer.read(struct.unpack("<Q", length)[0]))
        try:
            stored = _decode(f"/proc/self/fd/{file}")
            answer = {"dtype": stored.dtype.str, "size": stored.size}
            answers.write(json.dumps(answer).encode() + b"\n" + stored.tobytes())
        except Exception as error:  # SimpleITK raises RuntimeError, but an answer is owed for anything
            answers.write(json.dumps({"error": type(error).__name__}).encode() + b"\n")
        answers.flush()


def _limit_memory() -> None:
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM_BYTES, used + ROOM_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _decode(path: str) -> np.ndarray:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(path)
    reader.ReadImageInformation()
    if reader.GetNumberOfComponents() != 1:
        raise ValueError("its compressed pixels have colours")
    return sitk.GetArrayFromImage(reader.Execute())


if __name__ == "__main__":
    main()
