"""Finds roughly where heart chambers and vessels are filled with contrast agent, and tells them from bone.

It relies on three facts. The heart and its vessels lie between or in the lungs. A filled lumen is even, while
spongy bone is not. Bone is connected with the bone of the chest wall.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

AIR_BELOW_HU = -500
CONTRAST_HU = (150, 1000)
BONE_ABOVE_HU = 700
SOFT_TISSUE_HU = (0, 100)
LUNG_SHARE = 0.03  # of the body; sinuses and the gas of the bowel have less
CUT_SHARE = 0.5
REACH_MM = 15  # the lungs end this far above the base of the heart, where the diaphragm is
EVEN_MM = 8
NOISE_FACTOR = 1.5
SPREAD_HU = (15, 60)  # range of the limit for an even lumen; above it spongy bone would count as even
MIN_DISTANCE_MM = 0.5  # so that a header in metres does not lead to a window of thousands of samples
MIN_LUMEN_SHARE = 0.01  # docs/data-store.md has the measured ones
BLOOD_FACTOR = 0.55  # the spleen and the wall of the heart are darker than this share of the blood's HU
MIXING_FACTOR = 0.08  # dense contrast agent mixes less evenly, so the allowed spread grows with the mean HU
CRUMB_SHARE = 0.02
RIM_MM = 6
BONE_REACH_MM = 8
IN_PLANE = np.zeros((3, 3, 3), bool)
IN_PLANE[:, 1, 1] = IN_PLANE[1, :, 1] = True


class Vessels(NamedTuple):
    """Tells what holds contrast agent.

    Attributes:
        is_filled: bool of the samples' shape; all false without contrast agent.
        is_in_lung: those of them that are vessels inside the lungs, with air around them.
        lumen_share: share of the tissue between the lungs that the largest evenly bright part takes, 0 to 1.
    """

    is_filled: np.ndarray
    is_in_lung: np.ndarray
    lumen_share: float


class _Chest(NamedTuple):
    """Holds arrays of one shape: HU, and masks of what is where.

    `near` is `between` together with what lies up to 15 mm above or below it. `left` and `right` lie outside
    the lungs, up to a face of the volume that cuts through the body.
    """

    samples: np.ndarray
    body: np.ndarray
    lungs: np.ndarray
    between: np.ndarray
    near: np.ndarray
    left: np.ndarray
    right: np.ndarray


def find_vessels(samples: np.ndarray, body: np.ndarray, spacing_mm: Sequence[float]) -> Vessels:
    """Finds filled vessels and chambers of the chest.

    A sample lies between the lungs if there is lung to its left and to its right. Where a face of the volume
    cuts through the body, lung on one side is enough if filled vessels lie between it and that face. Without
    lungs (a crop, another part of the body) the whole body counts, and bone is what is connected with samples
    above 700 HU.

    Args:
        samples: (X, Y, Z) in HU, RAS axes.
        body: where the body is, lungs included, of the same shape.
        spacing_mm: distance of the samples along X, Y, Z.
    """
    is_filled, is_in_lung = np.zeros(samples.shape, bool), np.zeros(samples.shape, bool)
    spacing_mm = [max(distance, MIN_DISTANCE_MM) for distance in spacing_mm]
    chest = _find_chest(samples, body, spacing_mm)
    box = _bounding_box(chest.near | chest.left | chest.right)
    chest = _Chest(*(part[box] for part in chest))  # a fifth of a volume, so the rest is cheap
    if chest.samples.size == 0:
        return Vessels(is_filled, is_in_lung, 0.0)
    mean, even = _find_even(chest, spacing_mm)
    inside = even & (chest.between | chest.left | chest.right)
    darkest = max(CONTRAST_HU[0], BLOOD_FACTOR * float(np.median(mean[inside]))) if inside.any() else 0.0
    even &= mean >= darkest
    for side in (chest.left, chest.right):
        if np.count_nonzero(even & side) >= MIN_LUMEN_SHARE * _n_tissue(chest, side):
            chest.between[side], chest.near[side] = True, True
    lumen, n_largest = _large_parts(even, chest.between)
    share = n_largest / _n_tissue(chest, chest.between)
    if share < MIN_LUMEN_SHARE:
        return Vessels(is_filled, is_in_lung, share)
    filled = _without_bone(chest, lumen, spacing_mm)
    in_lung = filled & (_share_around(chest.lungs, spacing_mm) >= 0.5)
    is_in_lung[box] = in_lung
    is_filled[box] = in_lung | (filled & (chest.samples >= darkest))
    return Vessels(is_filled, is_in_lung, share)


def _find_chest(samples: np.ndarray, body: np.ndarray, spacing_mm: Sequence[float]) -> _Chest:
    regions, n_regions = ndimage.label(body & (samples < AIR_BELOW_HU))
    sizes = np.bincount(regions.ravel(), minlength=n_regions + 1)
    sizes[0] = 0
    if sizes.max() <= LUNG_SHARE * np.count_nonzero(body):
        nowhere = np.zeros_like(body)
        return _Chest(samples, body, nowhere, body.copy(), body.copy(), nowhere, nowhere)
    lungs = (10 * sizes >= sizes.max())[regions]
    after, before = np.maximum.accumulate(lungs), np.maximum.accumulate(lungs[::-1])[::-1]
    heights = lungs.any(axis=(0, 1))
    sides = []
    for face, inwards, outwards in ((0, before, after), (-1, after, before)):
        is_cut = np.mean(body[face][:, heights]) >= CUT_SHARE
        sides.append(body & inwards & ~outwards & is_cut)
    n_slices = 2 * round(REACH_MM / spacing_mm[2]) + 1
    near = body.copy()
    for side in (after, before):
        near &= ndimage.maximum_filter1d(side.view(np.uint8), n_slices, axis=2).view(bool)
    return _Chest(samples, body, lungs, after & before & body, near, *sides)


def _find_even(chest: _Chest, spacing_mm: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean HU over about 8 mm, and where they are those of an evenly filled lumen."""
    size = [
        2 * max(int(EVEN_MM / 2 / edge), least) + 1 for edge, least in zip(spacing_mm, (1, 1, 0), strict=True)
    ]
    hu = np.clip(chest.samples, -200, 1200).astype(np.float32)
    mean = ndimage.uniform_filter(hu, size, mode="nearest")
    spread = np.sqrt(np.maximum(ndimage.uniform_filter(hu * hu, size, mode="nearest") - mean * mean, 0))
    soft = spread[chest.body & (mean > SOFT_TISSUE_HU[0]) & (mean < SOFT_TISSUE_HU[1])]
    # A quarter of the soft tissue has no edge nearby, so its spread is noise.
    noise = float(np.percentile(soft, 25)) if len(soft) else 0.0
    even = chest.body & (mean >= CONTRAST_HU[0]) & (mean <= CONTRAST_HU[1])
    limit = np.clip(NOISE_FACTOR * noise, *SPREAD_HU)
    return mean, even & (spread < np.maximum(limit, MIXING_FACTOR * mean))


def _n_tissue(chest: _Chest, place: np.ndarray) -> int:
    return int(np.count_nonzero(place & (chest.samples > AIR_BELOW_HU))) or 1


def _large_parts(even: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, int]:
    """Returns connected parts mostly in `place`, without the crumbs of bone, and the largest size."""
    parts, n_parts = ndimage.label(even)
    n_all, n_inside = (np.bincount(part, minlength=n_parts + 1) for part in (parts.ravel(), parts[place]))
    n_inside[0] = 0
    n_inside[2 * n_inside < n_all] = 0  # such as the enhanced spleen below the diaphragm
    n_largest = int(n_inside.max())
    return (n_inside > CRUMB_SHARE * n_largest)[parts], n_largest


def _without_bone(chest: _Chest, lumen: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Returns what is as bright as contrast agent and not bone: between the lungs, and close to a lumen."""
    rim = ndimage.binary_dilation(lumen, IN_PLANE, iterations=max(round(RIM_MM / spacing_mm[0]), 1))
    bright = chest.body & (chest.samples >= CONTRAST_HU[0])
    seeds = ~chest.near
    if not chest.lungs.any():
        seeds |= chest.samples > BONE_ABOVE_HU
    bone = _grow_bone(bright & ~rim, seeds, max(round(BONE_REACH_MM / spacing_mm[2]), 1))
    return bright & (chest.samples <= CONTRAST_HU[1]) & ((chest.between & ~bone) | (chest.near & rim))


def _grow_bone(bright: np.ndarray, seeds: np.ndarray, n_slices: int) -> np.ndarray:
    """Collects the bright parts of each slice that hold a seed, and lets them grow to neighbouring slices.

    Each of `n_slices` rounds adds the parts of which more than half lies above or below a collected part. It
    works on parts of slices, not on bodies in space, because bone and vessels touch somewhere: in streaks of
    dense contrast agent, or where a vein crosses a rib.
    """
    parts, n_parts = ndimage.label(bright, structure=IN_PLANE)
    sizes = np.bincount(parts.ravel(), minlength=n_parts + 1)
    is_bone = np.zeros(n_parts + 1, bool)
    is_bone[parts[seeds]] = True
    is_bone[0] = False
    lower, upper = parts[..., :-1], parts[..., 1:]
    touch = (lower > 0) & (upper > 0)
    lower, upper = lower[touch], upper[touch]
    for _ in range(n_slices):
        below = np.bincount(upper, is_bone[lower], n_parts + 1)
        above = np.bincount(lower, is_bone[upper], n_parts + 1)
        is_bone |= 2 * np.maximum(below, above) > sizes
    return is_bone[parts]


def _share_around(lungs: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Returns the share of lung in the 20 mm square around each sample, in the axial plane."""
    size = [2 * round(10 / distance) + 1 for distance in spacing_mm[:2]]
    return ndimage.uniform_filter(lungs.astype(np.float32), (*size, 1), mode="nearest")


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Bounds what is set, with a rim of one sample for bone of the chest wall; empty if nothing is set."""
    box = []
    for axis in range(3):
        found = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append(slice(max(found[0] - 1, 0), found[-1] + 2) if len(found) else slice(0, 0))
    return tuple(box)
