"""Reads the header of one DICOM file, never its pixels and never past its end.

GDCM reads a file with all its pixels to give one tag, gives no transfer syntax and nothing of a file without
pixels, and trusts what it reads. A scan of 1000 patients needs a few kB of each file, and whatever is wrong
must be known before GDCM sees it; so the header is walked here, and GDCM decodes pixels alone.
"""

import os
from collections.abc import Container
from pathlib import Path
from typing import NamedTuple

from bundle.data.dicom.elements import (
    PREAMBLE_BYTES,
    STORAGE_CLASS,
    TRANSFER_SYNTAX,
    ElementWalker,
    Fault,
)
from bundle.data.volumes.nifti import VolumeError
from bundle.run.files import open_regular


class DicomError(VolumeError):
    """A DICOM file or series that cannot be used; `code` says why to a machine."""


class DicomHeader(NamedTuple):
    """What a series is made of.

    Attributes:
        path: the file.
        storage_class: UID of what the file holds, from the file's own prefix.
        transfer_syntax: UID of how it is written.
        values: texts and whole numbers by the names of `TAGS`; absent and empty ones are left out. `patient`
            is a hash: the PatientID in clear leaves the reader nowhere.
        pixel_bytes: length of the pixel data; None if there are none, -1 if it is only known by reading them.
        fault: code and what is wrong with the file, None if nothing that its header tells.
    """

    path: Path
    storage_class: str
    transfer_syntax: str
    values: dict[str, str | int]
    pixel_bytes: int | None
    fault: tuple[str, str] | None

    def text(self, name: str) -> str:
        """A value as text, empty if it is absent."""
        return str(self.values.get(name, ""))

    def number(self, name: str) -> int:
        """A whole number, 0 if it is absent or a text that is none."""
        value = self.values.get(name, 0)
        return value if isinstance(value, int) else int(value) if value.isdecimal() and len(value) < 10 else 0

    def numbers(self, name: str) -> tuple[float, ...]:
        """The numbers of a text that backslashes part, empty if it is absent or damaged."""
        try:
            return tuple(float(part) for part in self.text(name).split("\\"))
        except ValueError:
            return ()


def is_dicom(path: Path) -> bool:
    """Whether a file carries DICOM's mark, or at least its suffix.

    One that cannot be opened counts if it has no suffix, as archives like to name slices: a slice that is
    left out in silence makes a shorter volume.
    """
    suffix = path.suffix.lower()
    try:
        with open_regular(path) as file:
            has_mark = file.read(PREAMBLE_BYTES + 4)[PREAMBLE_BYTES:] == b"DICM"
    except OSError:
        has_mark = not any(letter.isalpha() for letter in suffix)
    return has_mark or suffix in (".dcm", ".dicom", ".ima")


def read_dicom_header(path: Path) -> DicomHeader:
    """Reads what `TAGS` names, up to the pixel data. A file at fault is returned with its fault, not raised.

    Args:
        path: a file.

    Returns:
        its header; with a fault, as much of it as could be read.
    """
    values: dict[str, str | int] = {}
    prefix: dict[int, str] = {}
    pixel_bytes: int | None = None
    fault: tuple[str, str] | None = None
    try:
        with open_regular(path, buffering=1 << 14) as file:
            walker = ElementWalker(file, os.fstat(file.fileno()).st_size)
            try:
                walker.read_prefix(prefix)
                pixel_bytes = walker.read_data_set(prefix.get(TRANSFER_SYNTAX, ""), values)
            except Fault as found:
                fault = found.fault
    except OSError as error:
        fault = "unreadable", f"cannot be read ({error.strerror or error})"
    syntax, storage = prefix.get(TRANSFER_SYNTAX, ""), prefix.get(STORAGE_CLASS, "")
    return DicomHeader(path, storage or str(values.get("sop_class", "")), syntax, values, pixel_bytes, fault)


def read_raw_elements(path: Path, tags: Container[int]) -> dict[int, bytes]:
    """Values of a DICOM file as it holds them, in its own character set; identity too, so never log them.

    Args:
        path: a file whose header was checked.
        tags: wanted ones before the pixel data, group and element in one number.

    Returns:
        bytes by tag; absent and empty ones are left out.

    Raises:
        DicomError: if the file has changed since then.
    """
    prefix: dict[int, str] = {}
    try:
        with open_regular(path, buffering=1 << 14) as file:
            walker = ElementWalker(file, os.fstat(file.fileno()).st_size)
            walker.read_prefix(prefix)
            return walker.read_raw(prefix.get(TRANSFER_SYNTAX, ""), tags)
    except (OSError, Fault) as error:
        raise DicomError(
            f"{path}: can no longer be read ({type(error).__name__}); run it again on a copy that stays",
            "unreadable",
        ) from error
