"""Chooses which parts of a volume a browser shows: an overview, and boxes at full resolution.

Axis letters: X, Y, Z of a volume in RAS axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import nibabel as nib
import numpy as np

OVERVIEW_VOXELS = 160**3
BOX_SIDE = 128
BLOCK = 16
MAX_PLACES = 5
FAR_APART = 2
"""Two places of large error are at least this many blocks apart."""


class Place(NamedTuple):
    """A place to look at: its name, and its voxel (X, Y, Z)."""

    name: str
    voxel: tuple[int, int, int]


class View(NamedTuple):
    """A volume or a part of one, and its reconstruction.

    Attributes:
        name: what is shown, in words.
        original: (X, Y, Z) int16 in HU.
        recon: of the same shape.
        affine: (4, 4), voxels to RAS millimetres.
        places: to look at, in voxels of this view.
    """

    name: str
    original: np.ndarray
    recon: np.ndarray
    affine: np.ndarray
    places: tuple[Place, ...] = ()


def views_of(
    original: np.ndarray,
    recon: np.ndarray,
    affine: np.ndarray,
    window_hu: tuple[float, float],
    places: Sequence[Place] = (),
    side: int = BOX_SIDE,
) -> list[View]:
    """Returns an overview, a box around the first place if there is one, and a box around the largest error.

    Args:
        original: (X, Y, Z) int16 in HU.
        recon: of the same shape.
        affine: (4, 4), voxels to RAS millimetres.
        window_hu: volumes are clipped to it before errors are computed.
        places: to look at, the most important first.
        side: of the boxes in voxels.
    """
    errors = largest_errors(original, recon, *window_hu)
    every = [*places, *errors]
    views = [overview(original, recon, affine, every)]
    for first in (*places[:1], *errors[:1]):
        name = f"around {first.name.split(':')[0]}"
        views.append(box_around(name, original, recon, affine, first.voxel, [first, *every], side))
    return views


class Spot(Protocol):
    """An invented embolus: its darkest voxel (X, Y, Z), and its contrast as a share of a clot's."""

    @property
    def voxel(self) -> tuple[int, int, int]:
        """Returns (X, Y, Z)."""

    @property
    def strength(self) -> float:
        """Returns the contrast as a share of a clot's."""


def invented_places(spots: Sequence[Spot], n: int = MAX_PLACES) -> list[Place]:
    """Returns the strongest invented emboli as places."""
    strongest = sorted(spots, key=lambda spot: -spot.strength)[:n]
    return [
        Place(f"invented embolus {number}: {spot.strength:.0%} of a clot's contrast", spot.voxel)
        for number, spot in enumerate(strongest, start=1)
    ]


def overview(
    original: np.ndarray,
    recon: np.ndarray,
    affine: np.ndarray,
    places: Sequence[Place] = (),
    max_voxels: int = OVERVIEW_VOXELS,
) -> View:
    """Returns the whole volume, reduced by averaging until a page can hold it.

    The axis with the finest voxels is reduced first. Averages hide noise, and the view's name says so.

    Args:
        original: (X, Y, Z) int16 in HU.
        recon: of the same shape.
        affine: (4, 4), voxels to RAS millimetres.
        places: of the volume.
        max_voxels: of the view.
    """
    steps = np.array(_steps(original.shape, nib.affines.voxel_sizes(affine), max_voxels))
    if (steps == 1).all():
        return View("whole volume", original, recon, affine, tuple(places))
    reduced = affine.copy()
    reduced[:3, :3] = affine[:3, :3] * steps
    reduced[:3, 3] = nib.affines.apply_affine(affine, (steps - 1) / 2)
    small = [_averaged(volume, steps) for volume in (original, recon)]
    last = np.array(small[0].shape) - 1
    moved = [place._replace(voxel=_as_voxel(np.minimum(place.voxel // steps, last))) for place in places]
    name = f"whole volume, averages of {steps[0]} x {steps[1]} x {steps[2]} voxels (hides noise)"
    return View(name, small[0], small[1], reduced, tuple(moved))


def box_around(
    name: str,
    original: np.ndarray,
    recon: np.ndarray,
    affine: np.ndarray,
    centre: Sequence[float],
    places: Sequence[Place] = (),
    side: int = BOX_SIDE,
) -> View:
    """Returns a box of the volume at full resolution.

    Args:
        name: what the box shows.
        original: (X, Y, Z) int16 in HU.
        recon: of the same shape.
        affine: (4, 4), voxels to RAS millimetres.
        centre: voxel in the middle of the box, unless the border of the volume is too near.
        places: of the volume; those outside the box are left out.
        side: of the box in voxels.
    """
    box = box_slices(original.shape, centre, side)
    start = np.array([part.start for part in box])
    moved = affine.copy()
    moved[:3, 3] = nib.affines.apply_affine(affine, start)
    inside = [
        place._replace(voxel=_as_voxel(np.array(place.voxel) - start))
        for place in places
        if all(part.start <= at < part.stop for at, part in zip(place.voxel, box, strict=True))
    ]
    return View(f"{name}, full resolution", original[box], recon[box], moved, tuple(inside))


def box_slices(
    shape: Sequence[int], centre: Sequence[float], side: int = BOX_SIDE
) -> tuple[slice, slice, slice]:
    """Returns the slices of a box of at most `side` voxels per axis; it is moved into the volume, not cut."""
    parts = []
    for length, at in zip(shape, centre, strict=True):
        size = min(side, length)
        start = min(max(round(at) - size // 2, 0), length - size)
        parts.append(slice(start, start + size))
    return parts[0], parts[1], parts[2]


def largest_errors(
    original: np.ndarray, recon: np.ndarray, hu_min: float, hu_max: float, n: int = MAX_PLACES
) -> list[Place]:
    """Returns the blocks of 16 voxels per axis with the largest root mean squared error, the worst first.

    Args:
        original: (X, Y, Z) int16 in HU.
        recon: of the same shape.
        hu_min: both volumes are clipped to the window, as for the figures.
        hu_max: its upper end.
        n: largest number of blocks, each at least two blocks from the others.
    """
    squares = _block_errors(original, recon, hu_min, hu_max)
    places: list[Place] = []
    taken: list[np.ndarray] = []
    for flat in np.argsort(squares, axis=None)[::-1]:
        block = np.array(np.unravel_index(flat, squares.shape))
        if len(places) == n or squares[tuple(block)] == 0:
            break
        if all(np.abs(block - other).max() >= FAR_APART for other in taken):
            taken.append(block)
            middle = np.minimum(block * BLOCK + BLOCK // 2, np.array(original.shape) - 1)
            error_hu = float(np.sqrt(squares[tuple(block)]))
            places.append(Place(f"large error {len(places) + 1}: {error_hu:.0f} HU", _as_voxel(middle)))
    return places


def nifti_bytes(voxels: np.ndarray, affine: np.ndarray) -> bytes:
    """Returns a volume as an uncompressed NIfTI-1 file: 352 bytes of header, then int16 in Fortran order."""
    image = nib.Nifti1Image(np.asarray(voxels, np.int16), affine)
    image.header.set_data_dtype("<i2")
    image.header.set_xyzt_units("mm")
    content: bytes = image.to_bytes()
    return content


def _steps(shape: Sequence[int], spacing_mm: Sequence[float], max_voxels: int) -> list[int]:
    """Returns by how many voxels each axis is reduced, so that the result is nearly isotropic."""
    steps = [1, 1, 1]
    while np.prod([-(-size // step) for size, step in zip(shape, steps, strict=True)]) > max_voxels:
        coarse = [
            step * edge if size > step else np.inf
            for size, step, edge in zip(shape, steps, spacing_mm, strict=True)
        ]
        steps[int(np.argmin(coarse))] += 1
    return steps


def _averaged(volume: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Averages blocks, in slabs along z; a remainder at the far border is left out."""
    x, y, z = (size // step for size, step in zip(volume.shape, steps, strict=True))
    small = np.empty((x, y, z), np.int16)
    for n in range(z):
        slab = volume[: x * steps[0], : y * steps[1], n * steps[2] : (n + 1) * steps[2]]
        blocks = slab.reshape(x, steps[0], y, steps[1], -1)
        small[..., n] = np.rint(blocks.mean(axis=(1, 3, 4), dtype=np.float32))
    return small


def _block_errors(original: np.ndarray, recon: np.ndarray, hu_min: float, hu_max: float) -> np.ndarray:
    blocks = [-(-size // BLOCK) for size in original.shape]
    squares = np.zeros(blocks, np.float32)
    for z in range(blocks[2]):
        slab = np.s_[..., z * BLOCK : (z + 1) * BLOCK]
        old, new = (volume[slab].clip(hu_min, hu_max).astype(np.float32) for volume in (original, recon))
        error = np.square(new - old).mean(axis=2)
        edges = [np.arange(0, size, BLOCK) for size in error.shape]
        sums = np.add.reduceat(np.add.reduceat(error, edges[0], axis=0), edges[1], axis=1)
        widths = [np.diff([*edge, size]) for edge, size in zip(edges, error.shape, strict=True)]
        squares[..., z] = sums / np.outer(*widths)
    return squares


def _as_voxel(at: Sequence[float] | np.ndarray) -> tuple[int, int, int]:
    x, y, z = (int(one) for one in at)
    return x, y, z
