"""Judges by headers alone whether a DICOM series is a CT volume; if not, a code and a sentence say why."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bundle.data.dicom.geometry import Fault, Geometry, series_geometry
from bundle.data.dicom.header import (
    DicomHeader,
)
from bundle.data.dicom.parsing import (
    DOUBLE_PIXELS,
    FLOAT_PIXELS,
    MAX_FRAMES,
    NATIVE,
    PIXEL_DATA,
    open_data_set,
)

# Series that lie beside every CT and cannot be volumes: skipped with a warning, never an error.
SKIPPED = frozenset(("not_ct", "localizer", "dose_report", "secondary_capture"))
CT = "1.2.840.10008.5.1.4.1.1.2"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
DOSE_REPORT = "1.2.840.10008.5.1.4.1.1.88.67"
DOSE_WORDS = re.compile(r"dose\W*(report|info|record|summary)|patient\W*protocol", re.IGNORECASE)
PROJECTIONS = frozenset(("MIP", "MAX_IP", "MINIP", "MIN_IP", "MAXIMUM", "MINIMUM", "PROJECTION IMAGE"))
MAX_EDGE = 8192
# Even an empty slice in RLE or JPEG 2000 does not shrink more than this; a wrong header claims far more.
MAX_PACKING_RATIO = 2000
MAX_PADDING_BYTES = 1 << 20
AIR_HU = -1024
# The manufacturer that this project writes into the series it derives; see `bundle.data.dicom.derived`.
OWN_MANUFACTURER = "ctpa_vqgan"

ADVICE = {
    "unreadable": "check its permissions and the disk",
    "truncated": "copy it again",
    "damaged": "copy it again, or export the series again",
    "transfer_syntax": "export the series uncompressed, or as JPEG 2000 or lossless JPEG",
}


class Refusal(NamedTuple):
    """Says why a series or file cannot be used.

    Attributes:
        code: a word for programs. For a whole series: not_ct, localizer, dose_report, secondary_capture,
            too_few_slices, no_geometry, mixed_patients, mixed_orientation, mixed_size, duplicate_slices,
            two_phases, missing_slices, irregular_spacing, smaller_than_a_patch. For one of its files:
            unreadable, damaged, truncated, transfer_syntax, lying_header, multi_frame, colour,
            missing_rescale, non_hu.
        message: a sentence for a person; it begins with the path.
    """

    code: str
    message: str


class Screened(NamedTuple):
    """Holds what headers tell of a series: its geometry, or why it is refused; never both."""

    geometry: Geometry | None
    refusal: Refusal | None


def screen_series(path: Path, headers: Sequence[DicomHeader]) -> Screened:
    """Looks at all headers of one series.

    Args:
        path: what the message names.
        headers: of one series, in any order.

    Returns:
        The geometry or the refusal.
    """
    fault = _nature(headers) or _faults(headers) or _mixture(headers)
    if fault is None and len(headers) < 2:
        fault = "too_few_slices", "must hold two slices or more, got 1; give the whole series"
    found = fault or series_geometry(headers)
    if isinstance(found, Geometry):
        return Screened(found, None)
    code, words = found
    return Screened(None, Refusal(code, f"{path}: {words}"))


def series_notes(headers: Sequence[DicomHeader]) -> tuple[str, ...]:
    """Returns what a person should know of a series that can be used.

    Args:
        headers: of its slices, in which `screen_series` found no fault.
    """
    finders = (_origin_note, _end_note, _unit_note, _padding_note, _loss_note)
    notes = (find(headers) for find in finders)
    return tuple(filter(None, notes))


def smaller_than_a_patch(path: Path, shape: Sequence[int], patch_size: Sequence[int]) -> Refusal | None:
    """Returns the refusal of a volume that is smaller than a patch along an axis; None if none is.

    Args:
        path: what the message names.
        shape: (X, Y, Z) in voxels.
        patch_size: (X, Y, Z) in voxels.
    """
    if all(length >= needed for length, needed in zip(shape, patch_size, strict=True)):
        return None
    return Refusal(
        "smaller_than_a_patch",
        f"{path}: its {_times(shape)} voxels are fewer than a patch of {_times(patch_size)}; set a smaller "
        "`patch_size` or leave it out",
    )


def _times(lengths: Sequence[int]) -> str:
    return " x ".join(map(str, lengths))


def _nature(headers: Sequence[DicomHeader]) -> Fault | None:
    """Names what a series is if it cannot be a CT volume; None if it can, or if damage leaves that open."""
    natures = [_file_nature(header) for header in headers]
    return natures[0] if all(natures) else None


def _file_nature(header: DicomHeader) -> Fault | None:
    if header.fault and (header.storage_class in ("", CT) or header.fault[0] != "transfer_syntax"):
        return None  # what it says about itself may be damaged too
    kinds, modality = header.text("image_type").upper(), header.text("modality").upper()
    if header.storage_class == CT and header.pixel_bytes is None and not modality:
        return None  # it ends before it could say so
    if (
        header.storage_class == DOSE_REPORT
        or "DOSE" in kinds
        or DOSE_WORDS.search(header.text("description"))
    ):
        return "dose_report", "is a dose report, not a volume"
    if header.storage_class.startswith(SECONDARY_CAPTURE) or "SCREEN" in kinds:
        return "secondary_capture", "is a secondary capture (a stored picture of a screen), not a volume"
    # some anonymisers remove the modality; then the storage class decides
    if modality != "CT" and (modality or header.storage_class != CT):
        name = modality if modality.isalnum() and len(modality) <= 4 else "none"
        return "not_ct", f"is not CT: its modality is {name}"
    if any(word in kinds for word in ("LOCALIZER", "SCOUT", "TOPOGRAM")):
        return "localizer", "is a localizer, not a volume"
    if header.pixel_bytes is None and header.storage_class != CT:
        return "not_ct", "holds no pixels"
    return None


def _mixture(headers: Sequence[DicomHeader]) -> Fault | None:
    """Says if slices of several patients or studies share a SeriesInstanceUID, as after some anonymisers."""
    owners = {(header.text("patient"), header.text("study_uid")) for header in headers}
    n_owners = max(len({owner[place] for owner in owners if owner[place]}) for place in (0, 1))
    if n_owners < 2:
        return None
    return (
        "mixed_patients",
        f"its slices are of {n_owners} patients or studies that share a SeriesInstanceUID; put each study "
        "into a folder of its own",
    )


def _faults(headers: Sequence[DicomHeader]) -> Fault | None:
    """Says what makes slices unusable: the first slice's fault, and how many slices share it."""
    faults = [fault for header in headers if (fault := _file_fault(header))]
    if not faults:
        return None
    code, words = faults[0]
    n_alike = sum(fault[0] == code for fault in faults)
    return code, f"{words} ({n_alike} of {len(headers)} slices)" if n_alike > 1 else words


def _file_fault(header: DicomHeader) -> Fault | None:
    """Says what makes one slice unusable."""
    name = header.path.name
    if header.fault:
        return header.fault[0], f"{name} {header.fault[1]}; {ADVICE[header.fault[0]]}"
    if header.pixel_bytes is None:
        return "truncated", f"{name} is truncated: it ends before its pixels; copy it again"
    if header.n_frames > 1 and not header.text("position"):
        return (
            "multi_frame",
            f"{name} holds several frames without a position each; export it as single slices",
        )
    if header.number("samples") != 1 or header.text("photometric") not in ("MONOCHROME1", "MONOCHROME2", ""):
        return "colour", f"{name} must hold one number per pixel and no colours; give the scan itself"
    return _bits_fault(header) or _size_fault(header) or _unit_fault(header)


def _bits_fault(header: DicomHeader) -> Fault | None:
    """Says if the header does not tell how numbers lie in the bits of a pixel."""
    name, allocated = header.path.name, header.number("bits_allocated")
    if header.pixel_tag != PIXEL_DATA:
        bits = {FLOAT_PIXELS: 32, DOUBLE_PIXELS: 64}[header.pixel_tag]
        if allocated == bits and header.transfer_syntax in NATIVE:
            return None
        return "lying_header", f"{name} holds {bits}-bit numbers and declares something else; export it again"
    stored = header.number("bits_stored", allocated)
    if header.number("high_bit", stored - 1) != stored - 1:
        return (
            "lying_header",
            f"{name} keeps its {stored} bits elsewhere than in the lowest ones (its HighBit is "
            f"{header.number('high_bit')}); export it again",
        )
    if not 0 < stored <= allocated <= 32 or header.number("is_signed", 2) not in (0, 1):
        return (
            "lying_header",
            f"{name} does not say how many bits a pixel has and whether it is signed; export it again",
        )
    return None


def _size_fault(header: DicomHeader) -> Fault | None:
    """Says if rows, columns, frames and bits do not fit the pixel data, before anything is allocated."""
    rows, columns, bits = (header.number(name) for name in ("rows", "columns", "bits_allocated"))
    name, n_frames = header.path.name, header.n_frames
    is_possible = 0 < rows <= MAX_EDGE and 0 < columns <= MAX_EDGE and n_frames <= MAX_FRAMES
    if not is_possible or bits not in (8, 16, 32, 64):
        return "lying_header", f"{name} declares {columns} x {rows} pixels of {bits} bits; export it again"
    declared = rows * columns * bits // 8 * n_frames
    held = header.pixel_bytes or 0
    if held < 0:
        is_true = declared <= MAX_PACKING_RATIO * _bytes_of(header.path)
    else:
        is_true = held in (declared, declared + 1) or (held > declared and _is_padded(header, declared))
    if not is_true or header.frame >= n_frames:
        what = f"{name} declares {declared:,} bytes of pixels and does not hold them"
        return ("truncated" if 0 < held < declared else "lying_header"), f"{what}; export it again"
    return None


def _is_padded(header: DicomHeader, declared: int) -> bool:
    """Tells whether the bytes after the pixels are all equal; others may be rows that the header hides."""
    length = (header.pixel_bytes or 0) - declared
    if length > MAX_PADDING_BYTES:
        return False
    try:
        with open_data_set(header.path, header.transfer_syntax) as file:
            file.seek(header.pixel_start + declared)
            return len(set(file.read(length))) <= 1
    except OSError:  # it was removed since its header was read
        return False


def _bytes_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # it was removed since its header was read
        return 0


def _unit_fault(header: DicomHeader) -> Fault | None:
    """Says if the header does not turn stored values into HU."""
    name = header.path.name
    scaling = [header.numbers(name) for name in ("slope", "intercept")]
    if header.text("modality_table"):
        return "non_hu", f"{name} gives its HU by a table (Modality LUT Sequence); give the CT series itself"
    if not (header.text("slope") and header.text("intercept")):
        return (
            "missing_rescale",
            f"{name} has no rescale slope or intercept, so its HU are unknown; export it again",
        )
    if header.text("rescale_type").upper() not in ("", "HU", "HU_MOD", "US", "UNSPECIFIED"):
        return "non_hu", f"{name} is not in HU, as its rescale type says; give the CT series itself"
    if (
        any(len(numbers) != 1 or not math.isfinite(numbers[0]) for numbers in scaling)
        or not 0 < scaling[0][0] < 1e4
        or abs(scaling[1][0]) > 1e6
    ):
        return "non_hu", f"{name} has an impossible rescale slope or intercept; export it again"
    return None


def _origin_note(headers: Sequence[DicomHeader]) -> str:
    """Notes a series that was computed from a scan and looks like one."""
    for header in headers:
        kinds = {kind.strip() for kind in header.text("image_type").upper().split("\\")}
        if kinds & PROJECTIONS:
            return "is a projection computed from another series (its ImageType says so), not a scan"
        if header.text("manufacturer") == OWN_MANUFACTURER:
            return "was made by this project from another series; it is not a scan"
    return ""


def _end_note(headers: Sequence[DicomHeader]) -> str:
    """Notes slices that are missing at an end. They leave no gap, but some scanners write their number."""
    counts = Counter(header.text("acquisition_number") for header in headers)
    for header in headers:
        expected = header.number("images_in_acquisition"), header.number("images_in_series")
        for declared, found in zip(
            expected, (counts[header.text("acquisition_number")], len(headers)), strict=True
        ):
            if found < declared <= MAX_FRAMES:
                return (
                    f"its header counts {declared} slices, {found} are here; unless the others belong to "
                    "another series, the volume is shorter than the scan"
                )
    numbers = [header.number("instance_number", -1) for header in headers]
    first = min(numbers)
    if first > 1 and len(set(numbers)) == len(numbers) == max(numbers) - first + 1:
        return f"its slices are numbered from {first} on; slices before may be missing"
    return ""


def _unit_note(headers: Sequence[DicomHeader]) -> str:
    if any(header.text("rescale_type").upper() == "HU_MOD" for header in headers):
        return "is in modified HU (of a multi-energy scan), which may differ from those of a plain scan"
    return ""


def _loss_note(headers: Sequence[DicomHeader]) -> str:
    if any(header.text("lossy") == "01" for header in headers):
        return "was compressed with loss (LossyImageCompression 01), so its HU are not those of the scan"
    return ""


def _padding_note(headers: Sequence[DicomHeader]) -> str:
    for header in headers:
        stored = padding_range(header)
        if stored and _brightest_hu(header, stored) > AIR_HU:
            values = " to ".join(str(value) for value in dict.fromkeys(stored))
            return f"its padding (stored value {values}, not measured) is read as {AIR_HU} HU, air"
    return ""


def padding_range(header: DicomHeader) -> tuple[int, int] | None:
    """Returns the lowest and highest stored value that mean padding; None if the header names none."""
    if "padding" not in header.values or header.pixel_tag != PIXEL_DATA:
        return None
    first = header.number("padding")
    last = header.number("padding_limit", first)
    if header.number("is_signed"):
        # 16 bits, in any representation
        first, last = ((value & 0xFFFF ^ 0x8000) - 0x8000 for value in (first, last))
    return min(first, last), max(first, last)


def _brightest_hu(header: DicomHeader, stored: tuple[int, int]) -> float:
    return stored[1] * header.numbers("slope")[0] + header.numbers("intercept")[0]
