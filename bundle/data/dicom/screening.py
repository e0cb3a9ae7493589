"""Says from headers alone whether a DICOM series is a CT volume; if not, why: a code and a sentence."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bundle.data.dicom.elements import NATIVE
from bundle.data.dicom.geometry import Fault, Geometry, series_geometry
from bundle.data.dicom.header import DicomHeader

# Series that lie beside every CT and are no volume by nature: skipped with a warning, never an error.
SKIPPED = frozenset(("not_ct", "localizer", "dose_report", "secondary_capture"))
CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2."
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
DOSE_REPORT = "1.2.840.10008.5.1.4.1.1.88.67"
DOSE_WORDS = re.compile(r"dose\W*(report|info|record|summary)|patient\W*protocol", re.IGNORECASE)
MAX_EDGE = 8192
# An empty slice in RLE or JPEG 2000 packs so well; a header that lies goes beyond by far.
MAX_PACKING_RATIO = 2000


class Refusal(NamedTuple):
    """Why a series or file cannot be used.

    Attributes:
        code: for a machine. Of a whole series: not_ct, localizer, dose_report, secondary_capture,
            too_few_slices, no_geometry, mixed_orientation, mixed_size, duplicate_slices, two_phases,
            missing_slices, irregular_spacing, smaller_than_a_patch. Of one of its files: unreadable, damaged,
            truncated, transfer_syntax, lying_header, multi_frame, colour, missing_rescale, non_hu.
        message: for a person; begins with the path.
    """

    code: str
    message: str


class Screened(NamedTuple):
    """What headers tell of a series: its geometry, or why it is refused; never both."""

    geometry: Geometry | None
    refusal: Refusal | None


def screen_series(path: Path, headers: Sequence[DicomHeader]) -> Screened:
    """Looks at all headers of one series.

    Args:
        path: what the message names.
        headers: of one series, in any order.

    Returns:
        geometry or refusal.
    """
    fault = _nature(headers) or next(filter(None, map(_file_fault, headers)), None)
    if fault is None and len(headers) < 2:
        fault = "too_few_slices", "must hold two slices or more, got 1; give the whole series"
    found = fault or series_geometry(headers)
    if isinstance(found, Geometry):
        return Screened(found, None)
    code, words = found
    return Screened(None, Refusal(code, f"{path}: {words}"))


def smaller_than_a_patch(path: Path, shape: Sequence[int], patch_size: Sequence[int]) -> Refusal | None:
    """The refusal of a volume that is smaller than a patch along an axis, None if it is not.

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
    """What the series is, if it is no CT volume by nature. A damaged file that does not tell is none."""
    natures = [_file_nature(header) for header in headers]
    return natures[0] if all(natures) else None


def _file_nature(header: DicomHeader) -> Fault | None:
    if header.fault and (header.storage_class in ("", CT) or header.fault[0] != "transfer_syntax"):
        return None  # what it says of itself may be part of the damage
    kinds, modality = header.text("image_type").upper(), header.text("modality")
    if (
        header.storage_class == DOSE_REPORT
        or "DOSE" in kinds
        or DOSE_WORDS.search(header.text("description"))
    ):
        return "dose_report", "is a dose report, no volume"
    if header.storage_class.startswith(SECONDARY_CAPTURE) or "SCREEN" in kinds:
        return "secondary_capture", "is a secondary capture (a stored picture of a screen), no volume"
    if modality != "CT":
        name = modality if modality.isalnum() and len(modality) <= 4 else "none"
        return "not_ct", f"is not CT: its modality is {name}"
    if any(word in kinds for word in ("LOCALIZER", "SCOUT", "TOPOGRAM")):
        return "localizer", "is a localizer, no volume"
    if header.pixel_bytes is None and header.storage_class != CT:
        return "not_ct", "holds no pixels"
    return None


def _file_fault(header: DicomHeader) -> Fault | None:
    """What makes one slice unusable."""
    name = header.path.name
    if header.fault:
        return header.fault[0], f"{name} {header.fault[1]}; copy it again"
    if header.pixel_bytes is None:
        return "truncated", f"{name} is truncated: it ends before its pixels; copy it again"
    if header.storage_class.startswith(ENHANCED_CT) or header.text("frames") not in ("", "1"):
        return "multi_frame", f"{name} holds several frames (enhanced CT); export it as single slices"
    if header.number("samples") != 1:
        return "colour", f"{name} must hold one number per pixel; give the scan itself"
    return _size_fault(header) or _unit_fault(header)


def _size_fault(header: DicomHeader) -> Fault | None:
    """Whether rows, columns and bits fit the pixel data, before anybody allocates them."""
    rows, columns, bits = (header.number(name) for name in ("rows", "columns", "bits_allocated"))
    name = header.path.name
    if not (0 < rows <= MAX_EDGE and 0 < columns <= MAX_EDGE and bits in (8, 16, 32)):
        return "lying_header", f"{name} declares {columns} x {rows} pixels of {bits} bits; export it again"
    declared = rows * columns * bits // 8
    held = header.pixel_bytes or 0
    if header.transfer_syntax in NATIVE:
        is_true = held in (declared, declared + 1)
    else:
        is_true = declared <= MAX_PACKING_RATIO * _bytes_of(header.path)
    if not is_true:
        what = f"{name} declares {declared:,} bytes of pixels and does not hold them"
        return ("truncated" if 0 < held < declared else "lying_header"), f"{what}; export it again"
    return None


def _bytes_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # it went away since its header was read
        return 0


def _unit_fault(header: DicomHeader) -> Fault | None:
    """Whether stored values become HU by what the header says."""
    name = header.path.name
    scaling = [header.numbers(name) for name in ("slope", "intercept")]
    if not (header.text("slope") and header.text("intercept")):
        return (
            "missing_rescale",
            f"{name} has no rescale slope or intercept, so its HU are unknown; export it again",
        )
    if header.text("rescale_type").upper() not in ("", "HU", "US", "UNSPECIFIED"):
        return "non_hu", f"{name} is not in HU (its rescale type is another); give the CT series itself"
    if (
        any(len(numbers) != 1 or not math.isfinite(numbers[0]) for numbers in scaling)
        or not 0 < scaling[0][0] < 1e4
    ):
        return "non_hu", f"{name} has an impossible rescale slope or intercept; export it again"
    if abs(scaling[1][0]) > 1e6:
        return "non_hu", f"{name} has an impossible rescale slope or intercept; export it again"
    return None
