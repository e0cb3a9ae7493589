"""What a derived DICOM slice takes over from its source, byte for byte, and how it gets into its file.

SimpleITK takes text as UTF-8 only, and makes up a study date where there is none. So it writes voxels and
words of our own, and what belongs to the source is put into the finished file as bytes: a name in Latin-1 or
in Japanese stays what it is, a position keeps its last digit, and nothing of a foreign file reaches C++.
"""

import struct
from collections.abc import Mapping
from pathlib import Path

from bundle.data.dicom.elements import IMPLICIT_LITTLE, PIXEL_DATA
from bundle.data.dicom.header import DicomError, read_raw_elements

POSITION, ORIENTATION, PIXEL_SPACING = 0x00200032, 0x00200037, 0x00280030
INSTANCE_NUMBER, STUDY_UID, FRAME_UID = 0x00200013, 0x0020000D, 0x00200052
WINDOW_CENTER, WINDOW_WIDTH = 0x00281050, 0x00281051
BURNED_IN, SOURCE_IMAGES = 0x00280301, 0x00082112

# DICOM wants these in every CT slice, empty if unknown.
EMPTY_IF_ABSENT = frozenset(
    (
        *(0x00080020, 0x00080030, 0x00080050, 0x00080090),  # study date and time, accession, physician
        *(0x00100010, 0x00100020, 0x00100030, 0x00100040),  # patient's name, ID, birth date, sex
        *(0x00180050, 0x00180060),  # slice thickness, KVP
        *(0x00200010, 0x00200012, 0x00201040),  # study ID, acquisition number, reference of positions
    )
)
CARRIED = EMPTY_IF_ABSENT | {
    *(0x00080005, 0x00081030, 0x00100021),  # character set, study description, issuer of the patient's ID
    *(0x00120062, 0x00120063),  # whether and how the identity was removed
    *(0x00180010, 0x00180015, 0x00185100),  # contrast agent, body part, position of the patient
    *(0x00180088, 0x00181120),  # spacing between slices, tilt of the gantry
    *(STUDY_UID, FRAME_UID, INSTANCE_NUMBER, POSITION, ORIENTATION, PIXEL_SPACING),
    *(BURNED_IN, WINDOW_CENTER, WINDOW_WIDTH, 0x00281055),  # the last: names of the windows
}
UIDS = frozenset((STUDY_UID, FRAME_UID, 0x00081150, 0x00081155))
META_LENGTH_AT, META_AT = 140, 144  # of a DICOM file whose prefix begins with its length, as GDCM's does


def read_carried(path: Path) -> dict[int, bytes]:
    """What a derived slice takes over from its source slice; identity in clear, so never log it.

    Args:
        path: a file whose header was checked.
    """
    return read_raw_elements(path, CARRIED)


def sequence_of_source(storage_class: str, instance: str) -> bytes:
    """The value of a SourceImageSequence of one item, implicit little endian."""
    uids = {0x00081150: storage_class, 0x00081155: instance}
    return _element(0xFFFEE000, b"".join(_element(tag, uid.encode("latin-1")) for tag, uid in uids.items()))


def put_elements(file: Path, elements: Mapping[int, bytes], pixels: bytes) -> None:
    """Puts elements into a file that SimpleITK wrote, in place of all that `CARRIED` names.

    Args:
        file: as GDCM writes it uncompressed: implicit, little endian.
        elements: values by tag.
        pixels: what its pixel data must be.

    Raises:
        DicomError: if SimpleITK wrote something else.
    """
    content = file.read_bytes()
    start, found = _elements(content)
    if found.get(PIXEL_DATA) != pixels:
        raise DicomError(f"{file}: SimpleITK did not write it whole; look whether the disk is full")
    kept = {tag: value for tag, value in found.items() if tag not in CARRIED}
    merged = dict.fromkeys(EMPTY_IF_ABSENT, b"") | kept | dict(elements)
    file.write_bytes(content[:start] + b"".join(_element(tag, merged[tag]) for tag in sorted(merged)))


def _elements(content: bytes) -> tuple[int, dict[int, bytes]]:
    """Where the data set begins, and its values by tag; none of a file that is written otherwise."""
    found: dict[int, bytes] = {}
    if len(content) < META_AT:
        return len(content), found
    at = start = META_AT + struct.unpack_from("<I", content, META_LENGTH_AT)[0]
    if IMPLICIT_LITTLE.encode() + b"\0" not in content[META_AT:start]:
        return start, found
    while at + 8 <= len(content):
        group, element, length = struct.unpack_from("<HHI", content, at)
        found[group << 16 | element] = content[at + 8 : at + 8 + length]
        at += 8 + length
    return start, found


def _element(tag: int, value: bytes) -> bytes:
    if len(value) % 2:
        value += b"\0" if tag in UIDS else b" "
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(value)) + value
