"""Steps through the elements of a DICOM file, explicit or implicit, and takes what is wanted.

Every length is compared with what the file holds before anything is read or allocated.
"""

import os
import struct
from collections.abc import Callable, Container
from typing import BinaryIO

from bundle.run.names import patient_hash

PREAMBLE_BYTES = 128
MAX_ELEMENTS = 20_000
MAX_DEPTH = 16
MAX_VALUE_BYTES = 4096
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
PIXEL_DATA = 0x7FE00010
TRANSFER_SYNTAX, STORAGE_CLASS = 0x00020010, 0x00020002
LONG_FORMS = frozenset(
    (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
)

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
NATIVE = (IMPLICIT_LITTLE, "1.2.840.10008.1.2.1", EXPLICIT_BIG)
# JPEG (lossy 12 bit, lossless), JPEG-LS, JPEG 2000, RLE: what SimpleITK's GDCM decodes.
COMPRESSED = tuple(
    f"1.2.840.10008.1.2.{end}" for end in ("4.50 4.51 4.57 4.70 4.80 4.81 4.90 4.91 5".split())
)

TAGS = {
    "image_type": 0x00080008,
    "sop_class": 0x00080016,
    "sop_instance": 0x00080018,
    "content_time": 0x00080033,
    "modality": 0x00080060,
    "description": 0x0008103E,
    "patient": 0x00100020,
    "contrast_agent": 0x00180010,
    "series_uid": 0x0020000E,
    "acquisition_number": 0x00200012,
    "position": 0x00200032,
    "orientation": 0x00200037,
    "temporal_position": 0x00200100,
    "samples": 0x00280002,
    "frames": 0x00280008,
    "rows": 0x00280010,
    "columns": 0x00280011,
    "pixel_spacing": 0x00280030,
    "bits_allocated": 0x00280100,
    "intercept": 0x00281052,
    "slope": 0x00281053,
    "rescale_type": 0x00281054,
}
WANTED = {tag: name for name, tag in TAGS.items()}
BINARY = frozenset(("samples", "rows", "columns", "bits_allocated"))


class Fault(Exception):
    """Ends the walk; caught by `bundle.data.dicom.header`."""

    def __init__(self, code: str, what: str) -> None:
        super().__init__(what)
        self.fault = (code, what)


class ElementWalker:
    """Steps through the elements of an open file; every length is compared with what the file holds."""

    def __init__(self, file: BinaryIO, n_bytes: int) -> None:
        self.file = file
        self.n_bytes = n_bytes
        self.n_elements = 0
        self.order = "<"
        self.implicit = False

    def read_prefix(self, found: dict[int, str]) -> None:
        """The file's own group 0002, always explicit and little endian."""
        self.file.seek(PREAMBLE_BYTES)
        if self.file.read(4) != b"DICM":
            raise Fault("damaged", "has no DICOM mark")
        while True:
            start = self.file.tell()
            if self._take(2) != b"\x02\x00":
                self.file.seek(start)
                return
            self.file.seek(start)
            tag, _, length = self._element()
            value = self._take(self._held(length))
            if tag in (TRANSFER_SYNTAX, STORAGE_CLASS):
                found[tag] = _text(value)

    def read_data_set(self, syntax: str, values: dict[str, str | int]) -> int | None:
        """Fills `values`; returns the length of the pixel data as in `DicomHeader`."""
        return self._walk(syntax, WANTED, lambda tag, value: self._keep(WANTED[tag], value, values))

    def read_raw(self, syntax: str, tags: Container[int]) -> dict[int, bytes]:
        """Values of these elements as the file holds them, padding and all; empty ones are left out."""
        raw: dict[int, bytes] = {}
        self._walk(syntax, tags, raw.__setitem__)
        return raw

    def _walk(self, syntax: str, wanted: Container[int], keep: Callable[[int, bytes], None]) -> int | None:
        if syntax not in NATIVE + COMPRESSED:
            raise Fault("transfer_syntax", f"is packed in a way that is not supported ({_printable(syntax)})")
        self.order, self.implicit = (">" if syntax == EXPLICIT_BIG else "<"), syntax == IMPLICIT_LITTLE
        while self.file.tell() + 8 <= self.n_bytes:
            tag, form, length = self._element()
            if tag >= PIXEL_DATA:
                return self._pixel_bytes(tag, length, syntax)
            if length == UNDEFINED:
                self._skip_sequence(implicit=self.implicit or form == b"UN")
            elif tag in wanted and 0 < length <= MAX_VALUE_BYTES:
                keep(tag, self._take(self._held(length)))
            else:
                self._skip(length)
        if self.file.tell() != self.n_bytes:
            raise Fault("truncated", "ends in the middle of its header")
        return None

    def _pixel_bytes(self, tag: int, length: int, syntax: str) -> int | None:
        if tag != PIXEL_DATA:
            return None
        if length == UNDEFINED:
            return -1 if syntax in COMPRESSED else self._fail("its pixel data have no length")
        left = self.n_bytes - self.file.tell()
        if length > left:
            raise Fault(
                "truncated", f"is truncated: {length:,} bytes of pixels are declared, it holds {left:,}"
            )
        return length

    def _fail(self, what: str) -> int:
        raise Fault("damaged", f"is damaged: {what}")

    def _keep(self, name: str, value: bytes, values: dict[str, str | int]) -> None:
        if name not in BINARY:
            text = _text(value)
            values.update({name: patient_hash(text) if name == "patient" else text} if text else {})
        elif len(value) == 2:
            values[name] = struct.unpack(f"{self.order}H", value)[0]

    def _element(self) -> tuple[int, bytes, int]:
        """Tag, value representation and length of the element that starts here."""
        self.n_elements += 1
        if self.n_elements > MAX_ELEMENTS:
            self._fail(f"its header has more than {MAX_ELEMENTS:,} elements")
        head = self._take(8)
        group, element = struct.unpack_from(f"{self.order}HH", head)
        tag, form = group << 16 | element, head[4:6]
        if self.implicit or group == 0xFFFE:
            return tag, b"", struct.unpack_from(f"{self.order}I", head, 4)[0]
        if form in LONG_FORMS:
            return tag, form, struct.unpack(f"{self.order}I", self._take(4))[0]
        if not (form.isalpha() and form.isupper()):
            self._fail("its header is not made of DICOM elements")
        return tag, form, struct.unpack_from(f"{self.order}H", head, 6)[0]

    def _skip_sequence(self, implicit: bool, depth: int = 0) -> None:
        """Steps over a sequence of undefined length, and over its items and their sequences."""
        if depth > MAX_DEPTH:
            self._fail("its sequences are nested too deep")
        outside, self.implicit = self.implicit, implicit
        while (entry := self._element())[0] != SEQUENCE_END:
            tag, _, length = entry
            if tag != ITEM:
                self._fail("a sequence holds something else than items")
            if length != UNDEFINED:
                self._skip(length)
                continue
            while (entry := self._element())[0] != ITEM_END:
                _, form, length = entry
                if length == UNDEFINED:
                    self._skip_sequence(implicit or form == b"UN", depth + 1)
                else:
                    self._skip(length)
        self.implicit = outside

    def _held(self, length: int) -> int:
        if length > self.n_bytes - self.file.tell():
            raise Fault("truncated", "is truncated: its header goes past its end")
        return length

    def _skip(self, length: int) -> None:
        self.file.seek(self._held(length), os.SEEK_CUR)

    def _take(self, length: int) -> bytes:
        value = self.file.read(length)
        if len(value) < length:
            raise Fault("truncated", "is truncated: its header goes past its end")
        return value


def _text(value: bytes) -> str:
    return value.decode("latin-1").strip(" \0")


def _printable(uid: str) -> str:
    return uid if uid.replace(".", "").isdecimal() and len(uid) <= 64 else "no valid name"
