"""Inserts emboli of known size and place into filled vessels.

An embolus is a sphere of 55 HU, sampled over the box of each voxel and blurred in the axial plane, as by a
scanner. It is added as `-occupancy x lumen share x (blood - clot) x contrast`, so the noise of the scan stays
as it is and no voxel outside of the lumen changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from bundle.emboli.chest import WALL_STEP_MM, Lumen

SIZES_MM = (2, 4, 6, 8)
CONTRASTS = (1.0, 0.15)
"""Shares of a fresh clot's contrast against blood; at 1.0 an observer is always right from 4 mm on."""
CLOT_HU = 55.0
PSF_MM = 0.55
GAP_MM = 4.0
"""Distance between the surfaces of two emboli, so that no template sees a neighbour."""
MAX_SITES = {2: 240, 4: 180, 6: 120, 8: 80}
MAX_CANDIDATES = 20_000
SUBSAMPLES = 7
RIM_MM = 3.0
"""Width of the rim of lumen around an embolus that an observer compares it with."""
SEARCH_MM = 3.0


class Site(NamedTuple):
    """A place for one embolus.

    Attributes:
        number: of the site in its volume, from 0.
        size_mm: diameter.
        centre: X, Y, Z in voxels of the volume, with fractions.
        parity: which of the two volumes of a contrast holds it, 0 or 1.
        is_in_lung: whether the vessel runs inside a lung.
        blood_hu: mean HU of the lumen around it.
    """

    number: int
    size_mm: int
    centre: tuple[float, float, float]
    parity: int
    is_in_lung: bool
    blood_hu: float


class Change(NamedTuple):
    """The change that one embolus makes, inside a box of the volume.

    Attributes:
        site: where.
        box: three slices of the volume; the embolus and a rim.
        hu: (x, y, z) int16, the change at full contrast, rounded; at most 0.
        lumen_share: (x, y, z) float32, 0 outside of the lumen.
    """

    site: Site
    box: tuple[slice, slice, slice]
    hu: np.ndarray
    lumen_share: np.ndarray

    def at(self, contrast: float) -> np.ndarray:
        """Returns the change at a share of the full contrast, int16."""
        return np.rint(self.hu * contrast).astype(np.int16)


def find_changes(
    voxels: np.ndarray, spacing_mm: Sequence[float], lumen: Lumen | None, seed: int = 0
) -> list[Change]:
    """Finds places for emboli of mixed sizes, and computes what each embolus changes.

    At each place the embolus fits into the lumen, at least 4 mm from the next one. Sites alternate between
    two volumes, so that every site is seen with and without its embolus in the same noise.

    Args:
        voxels: original (X, Y, Z) int16 in HU, RAS axes.
        spacing_mm: edges of a voxel.
        lumen: its filled vessels; None gives no sites.
        seed: selects among the possible places.

    Returns:
        the changes in the order of their sites.
    """
    if lumen is None:
        return []
    generator = np.random.default_rng(seed)
    changes: list[Change] = []
    n_of: dict[tuple[int, bool], int] = {}
    for size_mm, centre in _places(lumen, spacing_mm, generator):
        number = len(changes)
        key = size_mm, bool(lumen.lie_in_lung(np.rint([centre]).astype(int))[0])
        n_of[key] = n_of.get(key, 0) + 1
        site = Site(number, size_mm, centre, n_of[key] % 2, key[1], 0.0)
        changes.append(_make_change(voxels, spacing_mm, lumen, site))
    return changes


def insert(voxels: np.ndarray, changes: Sequence[Change], contrast: float, parity: int) -> np.ndarray:
    """Returns a copy of the volume with the emboli of one parity at one contrast."""
    changed = voxels.copy()
    for change in changes:
        if change.site.parity == parity:
            changed[change.box] += change.at(contrast)
    return changed


def _places(
    lumen: Lumen, spacing_mm: Sequence[float], generator: np.random.Generator
) -> Iterator[tuple[int, tuple[float, float, float]]]:
    """Yields size and centre of sites; the size furthest behind its quota comes first."""
    free = {size: _candidates(lumen, size, generator) for size in SIZES_MM}
    n_of = dict.fromkeys(SIZES_MM, 0)
    while choice := [size for size in SIZES_MM if n_of[size] < MAX_SITES[size] and len(free[size])]:
        size = min(choice, key=lambda size: (n_of[size] / MAX_SITES[size], -size))
        n_of[size] += 1
        centre = free[size][0]
        for other, places in free.items():
            distance = np.linalg.norm((places - centre) * spacing_mm, axis=1)
            free[other] = places[distance >= (size + other) / 2 + GAP_MM]
        x, y, z = centre.tolist()
        yield size, (x, y, z)


def _candidates(lumen: Lumen, size_mm: int, generator: np.random.Generator) -> np.ndarray:
    """Returns (N, 3) centres where an embolus fits, in random order; the few inside the lungs come first."""
    fits = np.argwhere((lumen.wall >= round(size_mm / 2 / WALL_STEP_MM)) & lumen.is_certain)
    fits = generator.permutation(fits) + np.array(lumen.origin)
    is_in_lung = lumen.lie_in_lung(fits)
    ordered = np.concatenate([fits[is_in_lung], fits[~is_in_lung]])[:MAX_CANDIDATES]
    return ordered + generator.uniform(-0.25, 0.25, ordered.shape)


def _make_change(voxels: np.ndarray, spacing_mm: Sequence[float], lumen: Lumen, site: Site) -> Change:
    reach = [site.size_mm / 2 + RIM_MM + SEARCH_MM] * 2 + [site.size_mm / 2 + RIM_MM]
    box = []
    for position, edge, margin, length in zip(site.centre, spacing_mm, reach, voxels.shape, strict=True):
        n = int(np.ceil(margin / edge)) + 1
        box.append(slice(max(round(position) - n, 0), min(round(position) + n + 1, length)))
    share = _lumen_share(lumen, box, spacing_mm)
    inside = share >= 0.9
    offsets = [
        (np.arange(part.start, part.stop) - c) * e
        for part, c, e in zip(box, site.centre, spacing_mm, strict=True)
    ]
    distance = np.sqrt(sum(np.ix_(*offsets)[axis].astype(float) ** 2 for axis in range(3)))
    around = inside & (distance <= site.size_mm / 2 + RIM_MM)
    hu = voxels[tuple(box)]
    blood_hu = float(hu[around].mean()) if around.any() else lumen.blood_hu
    occupancy = sphere_occupancy(offsets, site.size_mm / 2, spacing_mm)
    change = -occupancy * share * max(blood_hu - CLOT_HU, 0)
    return Change(
        site._replace(blood_hu=blood_hu),
        (box[0], box[1], box[2]),
        np.rint(change).astype(np.int16),
        share.astype(np.float32),
    )


def _lumen_share(lumen: Lumen, box: Sequence[slice], spacing_mm: Sequence[float]) -> np.ndarray:
    """Returns the share of lumen in each voxel of a box: half at the wall, 0 outside, free of noise."""
    wide = [int(np.ceil(3 * PSF_MM / edge)) for edge in spacing_mm[:2]] + [0]
    starts = [part.start - n - o for part, n, o in zip(box, wide, lumen.origin, strict=True)]
    stops = [part.stop + n - o for part, n, o in zip(box, wide, lumen.origin, strict=True)]
    kept = [
        slice(max(a, 0), max(min(b, n), 0)) for a, b, n in zip(starts, stops, lumen.wall.shape, strict=True)
    ]
    padding = [(max(-a, 0), max(b - n, 0)) for a, b, n in zip(starts, stops, lumen.wall.shape, strict=True)]
    inside = np.pad(lumen.wall[tuple(kept)] > 0, padding).astype(np.float32)
    sigma = (PSF_MM / spacing_mm[0], PSF_MM / spacing_mm[1], 0)
    share = inside * ndimage.gaussian_filter(inside, sigma, truncate=3)
    return share[tuple(slice(n, share.shape[axis] - n) for axis, n in enumerate(wide))]


def sphere_occupancy(
    offsets_mm: Sequence[np.ndarray], radius_mm: float, spacing_mm: Sequence[float]
) -> np.ndarray:
    """Returns the share of each voxel that is inside a sphere, blurred by 0.55 mm in the axial plane.

    Args:
        offsets_mm: of the voxels' centres from the sphere's centre, along X, Y, Z.
        radius_mm: of the sphere.
        spacing_mm: edges of a voxel.
    """
    squares = []
    for offset, edge in zip(offsets_mm, spacing_mm, strict=True):
        n = max(SUBSAMPLES, int(np.ceil(edge / 0.15)))
        parts = ((np.arange(n) + 0.5) / n - 0.5) * edge
        squares.append((offset[:, None] + parts) ** 2)
    x, y, z = squares
    occupancy = np.zeros([len(square) for square in squares])
    for i, square in enumerate(x):
        if square.min() > radius_mm**2:
            continue
        left = radius_mm**2 - square[:, None, None] - y.reshape(1, -1, 1)
        depth = left.reshape(len(square), *y.shape, 1, 1)
        occupancy[i] = (depth >= z).mean(axis=(0, 2, 4))
    sigma = (PSF_MM / spacing_mm[0], PSF_MM / spacing_mm[1], 0)
    blurred: np.ndarray = ndimage.gaussian_filter(occupancy, sigma, mode="constant", truncate=4)
    return blurred
