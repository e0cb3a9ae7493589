"""Reads from the headers of DICOM files all that is known of a series before its pixels are read."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bundle.data.dicom.parsing import MARK, PREAMBLE_BYTES, begins_data_set, parse, text_of
from bundle.data.volumes.nifti import VolumeError
from bundle.run.files import open_regular
from bundle.run.names import patient_hash

SUFFIXES = (".dcm", ".dicom", ".ima")
MAX_VALUE_BYTES = 4096

TAGS = {
    "image_type": 0x00080008,
    "sop_class": 0x00080016,
    "sop_instance": 0x00080018,
    "content_time": 0x00080033,
    "modality": 0x00080060,
    "manufacturer": 0x00080070,
    "description": 0x0008103E,
    "patient": 0x00100020,
    "contrast_agent": 0x00180010,
    "study_uid": 0x0020000D,
    "series_uid": 0x0020000E,
    "acquisition_number": 0x00200012,
    "instance_number": 0x00200013,
    "position": 0x00200032,
    "orientation": 0x00200037,
    "temporal_position": 0x00200100,
    "images_in_acquisition": 0x00201002,
    "images_in_series": 0x00201209,
    "samples": 0x00280002,
    "photometric": 0x00280004,
    "frames": 0x00280008,
    "rows": 0x00280010,
    "columns": 0x00280011,
    "pixel_spacing": 0x00280030,
    "bits_allocated": 0x00280100,
    "bits_stored": 0x00280101,
    "high_bit": 0x00280102,
    "is_signed": 0x00280103,
    "padding": 0x00280120,
    "padding_limit": 0x00280121,
    "intercept": 0x00281052,
    "slope": 0x00281053,
    "rescale_type": 0x00281054,
    "lossy": 0x00282110,
    "modality_table": 0x00283000,
}
# Frames use other tags than files for the same values.
OF_FRAMES = {0x00089007: "image_type", 0x00209128: "temporal_position", 0x00209156: "acquisition_number"}
WANTED = {tag: name for name, tag in TAGS.items()} | OF_FRAMES
BINARY = frozenset(
    ("samples", "rows", "columns", "bits_allocated", "bits_stored", "high_bit", "is_signed", "padding")
) | {"padding_limit"}
BINARY_OF_FRAMES = frozenset((0x00209128, 0x00209156))


class DicomError(VolumeError):
    """A DICOM file or series that cannot be used; `code` is the reason as a word for programs."""


class DicomHeader(NamedTuple):
    """Holds what is known of one slice: a file, or one frame of an enhanced file.

    Attributes:
        path: the file.
        storage_class: UID of what the file holds.
        transfer_syntax: UID of how the file is really written, which may differ from what it declares.
        values: texts and whole numbers by the names of `TAGS`; absent and empty ones are left out. `patient`
            is a hash: the PatientID itself never leaves the reader.
        pixel_tag: which of the three pixel elements it has; 0 if none.
        pixel_start: where their value begins; in a deflated file, where in its unpacked data set.
        pixel_bytes: length of the pixel data of all frames; None if there are none, -1 if it is only known by
            reading them.
        fault: code, and what is wrong with the file; None if its header is sound.
        frame: number of the frame in the file, from 0.
    """

    path: Path
    storage_class: str = ""
    transfer_syntax: str = ""
    values: Mapping[str, str | int] = {}
    pixel_tag: int = 0
    pixel_start: int = 0
    pixel_bytes: int | None = None
    fault: tuple[str, str] | None = None
    frame: int = 0

    def text(self, name: str) -> str:
        """Returns a value as text, empty if it is absent."""
        return str(self.values.get(name, ""))

    def number(self, name: str, absent: int = 0) -> int:
        """Returns a value as a whole number, or `absent` where there is none."""
        value = self.values.get(name, absent)
        if isinstance(value, int):
            return value
        return int(value) if value.isdecimal() and len(value) < 10 else absent

    def numbers(self, name: str) -> tuple[float, ...]:
        """Returns the numbers of a text, separated by backslashes; empty if it is absent or damaged."""
        try:
            return tuple(float(part) for part in self.text(name).split("\\"))
        except ValueError:
            return ()

    @property
    def n_frames(self) -> int:
        """Returns how many frames the file declares."""
        return max(1, self.number("frames", 1))


def is_dicom(path: Path) -> bool:
    """Tells whether a file carries DICOM's mark, begins like a data set without one, or has DICOM's suffix.

    A file that cannot be opened counts if it has no suffix, because archives often name slices that way and
    a slice that is left out unnoticed makes a shorter volume.
    """
    suffix = path.suffix.lower()
    try:
        with open_regular(path) as file:
            head = file.read(PREAMBLE_BYTES + len(MARK))
        is_one = head[PREAMBLE_BYTES:] == MARK or begins_data_set(head)
    except OSError:
        is_one = not any(letter.isalpha() for letter in suffix)
    return is_one or suffix in SUFFIXES


def read_dicom_headers(path: Path) -> list[DicomHeader]:
    """Reads what `TAGS` names, up to the pixel data. The fault of a file is returned, not raised.

    Args:
        path: a file.

    Returns:
        One header, or one for each frame of an enhanced file; with a fault, as much as could be read.
    """
    try:
        found = parse(path, WANTED)
    except OSError as error:
        return [DicomHeader(path, fault=("unreadable", f"cannot be read ({error.strerror or error})"))]
    frames = [dict(_values(elements)) for elements in found.frames()]
    storage = found.storage_class or str(frames[0].get("sop_class", ""))
    headers = [
        DicomHeader(path, storage, found.syntax, values, *found.pixels, found.fault, frame)
        for frame, values in enumerate(frames)
    ]
    n_frames = headers[0].n_frames
    if len(headers) not in (1, n_frames):
        more = "more" if len(headers) > n_frames else "fewer"
        words = f"is damaged: it declares {n_frames} frames and describes {more}"
        headers = [header._replace(fault=header.fault or ("damaged", words)) for header in headers]
    return headers


def read_raw_elements(path: Path, tags: Iterable[int], frame: int = 0) -> dict[int, bytes]:
    """Reads the values of a DICOM file in its own character set; they hold identity, so never log them.

    Args:
        path: a file whose header was checked.
        tags: the tags to read before the pixel data, group and element in one number.
        frame: of an enhanced file; values of the frame take precedence over those of the file.

    Returns:
        bytes by tag; absent and empty ones are left out.

    Raises:
        DicomError: if the file has changed since then.
    """
    tags = frozenset(tags)
    reason = "it has changed"
    try:
        found = parse(path, tags)
        frames = found.frames()
        if found.fault is None and found.pixels[2] is not None and frame < len(frames):
            return {
                tag: element.value
                for tag, element in frames[frame].items()
                if tag in tags and isinstance(element.value, bytes) and element.value
            }
    except OSError as error:
        reason = type(error).__name__
    raise DicomError(
        f"{path}: can no longer be read ({reason}); run it again on a copy that stays", "unreadable"
    )


def _values(elements: Mapping[int, Any]) -> Iterator[tuple[str, str | int]]:
    """Yields the elements as `DicomHeader` holds them; those of frames follow those of their file."""
    for tag, name in WANTED.items():
        element = elements.get(tag)
        value = getattr(element, "value", None)
        if name == "modality_table":
            if value:
                yield name, "present"
        elif element is None or not isinstance(value, bytes) or not 0 < len(value) <= MAX_VALUE_BYTES:
            continue
        elif tag in BINARY_OF_FRAMES or name in BINARY:
            if len(value) in (2, 4):
                yield name, int.from_bytes(value, "little" if element.is_little_endian else "big")
        elif text := text_of(value):
            yield name, patient_hash(text) if name == "patient" else text
