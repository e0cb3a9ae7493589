"""Places the slices of a DICOM series in the patient; slices that no affine can place get a fault code.

DICOM's millimetres run to the left, posterior and superior (LPS), NIfTI's to the right, anterior, superior.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bundle.data.dicom.header import DicomHeader
from bundle.run.names import counted

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Cosines and millimetres are decimal texts, often of six digits.
COSINE_TOLERANCE = 1e-3
# Allowed error of a position: a share of the distance between slices; in mm, for texts of one decimal.
POSITION_TOLERANCE = 0.1
POSITION_TOLERANCE_MM = 0.06
SAME_POSITION_MM = 1e-3
GAP_RATIO = 1.5
PHASE_TAGS = ("temporal_position", "acquisition_number", "content_time")
MAX_PHASES = 8

# How many numbers, and the range in which they can be lengths in a patient (mm) or cosines.
LIMITS = {"position": (3, -1e5, 1e5), "orientation": (6, -1.01, 1.01), "pixel_spacing": (2, 1e-3, 1e2)}

Fault = tuple[str, str]


class Geometry(NamedTuple):
    """Tells where a series lies.

    Attributes:
        order: indices of its headers by position along the normal of the slices, rising.
        shape: (columns, rows, slices).
        affine: (4, 4) float64, voxel to RAS millimetres; exact for oblique and for tilted series.
        tilt_degrees: angle between the normal and the line that the slices are stacked on.
    """

    order: tuple[int, ...]
    shape: tuple[int, int, int]
    affine: np.ndarray
    tilt_degrees: float

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Returns the edges of a voxel along columns, rows and slices."""
        return tuple(np.linalg.norm(self.affine[:3, :3], axis=0).tolist())


def series_geometry(headers: Sequence[DicomHeader]) -> Geometry | Fault:
    """Orders the slices by position and finds the affine; returns a code and a sentence if that fails.

    Args:
        headers: of one series, two or more, in any order.
    """
    fault = _plane_fault(headers)
    if fault:
        return fault
    positions = np.array([header.numbers("position") for header in headers])
    row, column = np.array(headers[0].numbers("orientation")).reshape(2, 3)
    normal = np.cross(row, column)
    depths = positions @ normal
    order = np.argsort(depths, kind="stable")
    ordered = [headers[index] for index in order]
    fault = _stack_fault(ordered, depths[order]) or _line_fault(positions[order])
    if fault:
        return fault
    step = (positions[order[-1]] - positions[order[0]]) / (len(headers) - 1)
    between_rows, between_columns = headers[0].numbers("pixel_spacing")
    affine = np.eye(4)
    affine[:3] = np.column_stack([row * between_columns, column * between_rows, step, positions[order[0]]])
    cosine = min(1.0, float(step @ normal) / float(np.linalg.norm(step) * np.linalg.norm(normal)))
    shape = (headers[0].number("columns"), headers[0].number("rows"), len(headers))
    tilt = float(np.degrees(np.arccos(cosine)))
    return Geometry(tuple(order.tolist()), shape, LPS_TO_RAS @ affine, tilt)


def _plane_fault(headers: Sequence[DicomHeader]) -> Fault | None:
    """Says what is wrong with the slices one by one, and whether they are parallel and of one size."""
    lacking = next(filter(None, map(_lack_of_numbers, headers)), None)
    if lacking:
        return lacking
    first = headers[0]
    row, column = np.array(first.numbers("orientation")).reshape(2, 3)
    if np.abs([row @ row - 1, column @ column - 1, row @ column]).max() > COSINE_TOLERANCE:
        return "no_geometry", "its orientation is not made of two unit vectors; export the series again"
    if any(not _equal(header, first, "orientation") for header in headers):
        return "mixed_orientation", "its slices are not parallel; give one orientation per series"
    sizes = {(header.number("columns"), header.number("rows")) for header in headers}
    if len(sizes) > 1 or any(not _equal(header, first, "pixel_spacing") for header in headers):
        return "mixed_size", "its slices differ in size or pixel spacing; give one size per series"
    return None


def _lack_of_numbers(header: DicomHeader) -> Fault | None:
    for name, (length, low, high) in LIMITS.items():
        numbers = np.array(header.numbers(name))
        # written so that NaN fails it
        if len(numbers) != length or not ((numbers >= low) & (numbers <= high)).all():
            what = name.replace("_", " ")
            return "no_geometry", f"{header.path.name} has no usable {what}; export the series again"
    return None


def _equal(header: DicomHeader, first: DicomHeader, name: str) -> bool:
    return np.allclose(header.numbers(name), first.numbers(name), rtol=0, atol=COSINE_TOLERANCE)


def _stack_fault(ordered: Sequence[DicomHeader], depths: np.ndarray) -> Fault | None:
    """Says what is wrong with the distances between slices that lie in order."""
    distances = np.diff(depths)
    if (distances < SAME_POSITION_MM).any():
        instances = {(header.text("sop_instance"), header.frame) for header in ordered}
        if np.ptp(depths) < SAME_POSITION_MM and len(instances) == len(ordered):
            return (
                "no_geometry",
                f"its {len(ordered)} slices all state the same position, so their distance is unknown; "
                "export it again with the position of each slice",
            )
        n_twice = int((distances < SAME_POSITION_MM).sum())
        if len(instances) < len(ordered):
            return "duplicate_slices", f"holds {counted(n_twice, 'slice')} twice; remove the copies"
        return (
            "two_phases",
            f"holds two slices at {counted(n_twice, 'position')}, as of two phases; give one per series",
        )
    tag = _interleaving_tag(ordered, depths)
    if tag:
        return (
            "two_phases",
            f"its slices are of several phases that interleave (by {tag}); give one per series",
        )
    step = float(np.median(distances))
    grid = np.linspace(depths[0], depths[-1], len(depths))
    mean = float(distances.mean())
    tolerance = max(POSITION_TOLERANCE * mean, POSITION_TOLERANCE_MM)
    if np.abs(depths - grid).max() <= tolerance and np.ptp(distances) <= 0.5 * mean:
        return None
    found = f"distances between slices run from {distances.min():.4g} to {distances.max():.4g} mm"
    ratios = distances / step
    if (np.abs(ratios - np.rint(ratios)) <= 2 * POSITION_TOLERANCE).all():
        n_missing = int((np.rint(ratios) - 1).sum())
        return (
            "missing_slices",
            f"misses {counted(n_missing, 'slice')} ({found}); export the whole series again",
        )
    return "irregular_spacing", f"its {found}; give a series of one spacing"


def _interleaving_tag(ordered: Sequence[DicomHeader], depths: np.ndarray) -> str | None:
    """Returns the tag by which slices belong to phases that cover the same region, if there is one.

    A scan in several steps has several acquisition numbers too, but one after the other.
    """
    for tag in PHASE_TAGS:
        groups: dict[str, list[float]] = {}
        for header, depth in zip(ordered, depths, strict=True):
            groups.setdefault(header.text(tag), []).append(float(depth))
        if not 1 < len(groups) <= MAX_PHASES or min(map(len, groups.values())) < 3:
            continue
        extents = sorted((members[0], members[-1]) for members in groups.values())
        for (start, end), (next_start, next_end) in zip(extents, extents[1:], strict=False):
            shared = min(end, next_end) - next_start
            if shared > 0.5 * min(end - start, next_end - next_start):
                return tag.replace("_", " ")
    return None


def _line_fault(positions: np.ndarray) -> Fault | None:
    """Says whether the slices' corners leave the one line that an affine needs; the line may be tilted."""
    grid = np.linspace(positions[0], positions[-1], len(positions))
    step_mm = float(np.linalg.norm(positions[-1] - positions[0])) / (len(positions) - 1)
    off_mm = float(np.linalg.norm(positions - grid, axis=1).max())
    if off_mm > max(POSITION_TOLERANCE * step_mm, 2 * POSITION_TOLERANCE_MM):
        return (
            "irregular_spacing",
            f"its slices are shifted against each other by {off_mm:.4g} mm; export it again",
        )
    return None
