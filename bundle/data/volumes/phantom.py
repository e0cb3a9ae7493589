"""Makes a chest-like volume in HU for tests and smoke runs: contrasts, edges and branching vessels."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from monai.config import PathLike

from bundle.run.atomic import complete_or_absent

AIR_HU, FAT_HU, MUSCLE_HU, LUNG_HU, BONE_HU = -1000, -90, 45, -860, 550
VESSEL_HU = (300, 400)
NOISE_HU = 15
# (centre, radii) along X, Y, Z in half fields of view; a shape without Z runs along all of it.
BODY = ((0.0, 0.0), (0.94, 0.76))
MUSCLE = ((0.0, 0.0), (0.86, 0.68))
LUNGS = (((0.43, 0.04, 0.0), (0.36, 0.52, 0.92)), ((-0.43, 0.04, 0.0), (0.36, 0.52, 0.92)))
HEART = ((-0.1, 0.22, -0.3), (0.3, 0.28, 0.46))
SPINE = ((0.0, -0.5), (0.11, 0.12))
AORTA = ((-0.1, -0.28), (0.06, 0.06))
TRUNK = np.array([0.0, 0.1, 0.1])
BRANCHINGS = 7
CARINA, WINDPIPE_RADIUS, AIRWAY_BRANCHINGS = np.array([0.0, 0.05, 0.4]), 0.05, 4
CLOT_HU, EMBOLUS_SHARE = 55, 0.7
TRUNK_RADIUS = 0.07

Tube = tuple[np.ndarray, np.ndarray, float]
"""Start, end, and radius in units of the longest half field of view."""


class Embolus(NamedTuple):
    """A ball of clot: centre X, Y, Z in voxels, radius in mm."""

    centre: tuple[float, float, float]
    radius_mm: float


class LabelledPhantom(NamedTuple):
    """A phantom and the positions of its parts.

    Attributes:
        hu: (X, Y, Z) int16.
        vessels: (X, Y, Z) bool, everything that holds contrast agent or a clot.
        airways: (X, Y, Z) bool, the air in the windpipe and its branches.
        emboli: the clots.
    """

    hu: np.ndarray
    vessels: np.ndarray
    airways: np.ndarray
    emboli: tuple[Embolus, ...]


def make_phantom(
    shape: Sequence[int], spacing_mm: Sequence[float] = (1.0, 1.0, 1.0), seed: int = 0
) -> np.ndarray:
    """Makes a phantom that fills its field of view.

    Args:
        shape: (X, Y, Z) in voxels; X runs to the right, Y anterior, Z superior.
        spacing_mm: edges of a voxel; only their ratios matter, so that vessels are round.
        seed: of vessel trees and noise.

    Returns:
        (X, Y, Z) int16 in HU: air, fat, muscle, spine, ribs and two lungs; heart, aorta and a trunk that
        branches into both lungs have 300 to 400 HU; everything has noise of 15 HU.

    Raises:
        ValueError: if there are not three positive lengths and spacings.
    """
    _check(shape, spacing_mm)
    generator = np.random.default_rng(seed)
    tissue, lungs = _draw_tissue(shape)
    blood, _ = _draw_blood(shape, spacing_mm, lungs, generator)
    hu = np.where(blood > 0, blood, tissue)
    hu += generator.normal(0, NOISE_HU, shape).astype(np.float32)
    return np.rint(hu).astype(np.int16)


def make_labelled_phantom(
    shape: Sequence[int],
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    seed: int = 0,
    blood_hu: float = 350,
    noise_hu: float = NOISE_HU,
    n_emboli: int = 0,
) -> LabelledPhantom:
    """Makes a phantom with airways, emboli and one density of blood, and returns where each part is.

    Args:
        shape: see `make_phantom`.
        spacing_mm: edges of a voxel; here they also give the emboli's size.
        seed: of the trees, the emboli and the noise.
        blood_hu: of all vessels.
        noise_hu: standard deviation of white noise.
        n_emboli: number of balls of 55 HU, each on the axis of a lung vessel, the widest vessels first.

    Raises:
        ValueError: if there are not three positive lengths and spacings, or fewer vessels than emboli.
    """
    _check(shape, spacing_mm)
    generator = np.random.default_rng(seed)
    hu, lungs = _draw_tissue(shape)
    airways = _draw_airways(hu, spacing_mm, lungs, np.random.default_rng(seed + 1))
    blood, tubes = _draw_blood(shape, spacing_mm, lungs, generator)
    vessels = blood > 0
    hu[vessels] = blood_hu
    emboli = _place_emboli(tubes, shape, spacing_mm, n_emboli)
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    for embolus in emboli:
        parts = zip(axes, embolus.centre, spacing_mm, strict=True)
        distance = sum(((axis - at) * mm) ** 2 for axis, at, mm in parts)
        hu[vessels & (distance <= embolus.radius_mm**2)] = CLOT_HU
    hu += generator.normal(0, noise_hu, shape).astype(np.float32)
    return LabelledPhantom(np.rint(hu).astype(np.int16), vessels, airways & ~vessels, emboli)


def _check(shape: Sequence[int], spacing_mm: Sequence[float]) -> None:
    if len(shape) != 3 or len(spacing_mm) != 3 or min(*shape, *spacing_mm) <= 0:
        raise ValueError(
            f"`shape` and `spacing_mm` must be three positive numbers each, got {shape}, {spacing_mm}"
        )


def _draw_tissue(shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Draws HU without vessels, and where the lungs are."""
    x, y, z = (axis.astype(np.float32) for axis in np.ogrid[tuple(slice(-1, 1, 1j * n) for n in shape)])
    hu = np.full(shape, AIR_HU, np.float32)
    hu[_ellipse((x, y), *BODY) & (z == z)] = FAT_HU  # z == z: the ellipse in every slice
    hu[_ellipse((x, y), *MUSCLE) & (z == z)] = MUSCLE_HU
    ring = _ellipse((x, y), (0, 0), (0.84, 0.66)) & ~_ellipse((x, y), (0, 0), (0.79, 0.61))
    hu[ring & (np.sin(14 * z + 3 * y) > 0.5)] = BONE_HU
    lungs = np.logical_or.reduce([_ellipse((x, y, z), *lung) for lung in LUNGS])
    hu[lungs] = LUNG_HU
    hu[_ellipse((x, y), *SPINE) & (np.sin(25 * z) > -0.8)] = BONE_HU
    return hu, lungs


def _draw_blood(
    shape: Sequence[int], spacing_mm: Sequence[float], lungs: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, list[Tube]]:
    """Draws HU of heart, aorta and vessel trees, 0 elsewhere, and the tubes inside the lungs."""
    x, y, z = (axis.astype(np.float32) for axis in np.ogrid[tuple(slice(-1, 1, 1j * n) for n in shape)])
    blood = np.zeros(shape, np.float32)
    blood[_ellipse((x, y, z), *HEART)] = generator.uniform(*VESSEL_HU)
    blood[_ellipse((x, y), *AORTA) & (z == z)] = generator.uniform(*VESSEL_HU)
    aspect = _aspect(shape, spacing_mm)
    tubes = []
    for (centre_x, *_), _ in LUNGS:
        hilum = np.array([0.25 * np.sign(centre_x), 0.0, 0.1])
        tree = _grow_tree(TRUNK, hilum, TRUNK_RADIUS, BRANCHINGS, generator)
        for number, line in enumerate(tree):
            inside = lungs if number else None  # the trunk alone crosses the mediastinum
            _draw_tube(blood, inside, line, aspect, generator.uniform(*VESSEL_HU))
            tubes += [line] * (number > 0)
    return blood, tubes


def _draw_airways(
    hu: np.ndarray, spacing_mm: Sequence[float], lungs: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Draws the windpipe and its branches with walls; returns where their air is."""
    aspect = _aspect(hu.shape, spacing_mm)
    tubes = [(np.array([0.0, 0.05, 1.0]), CARINA, WINDPIPE_RADIUS)]
    for (centre_x, *_), _ in LUNGS:
        hilum = np.array([0.2 * np.sign(centre_x), 0.05, 0.15])
        tubes += _grow_tree(CARINA, hilum, 0.7 * WINDPIPE_RADIUS, AIRWAY_BRANCHINGS, generator)
    air = np.zeros(hu.shape, np.float32)
    for start, end, radius in tubes:
        inside = None if max(abs(start[0]), abs(end[0])) <= 0.2 else lungs  # the rest crosses the mediastinum
        _draw_tube(hu, inside, (start, end, 1.3 * radius), aspect, MUSCLE_HU)
        _draw_tube(air, inside, (start, end, radius), aspect, 1.0)
    hu[air > 0] = AIR_HU
    return air > 0


def _place_emboli(
    tubes: Sequence[Tube], shape: Sequence[int], spacing_mm: Sequence[float], n_emboli: int
) -> tuple[Embolus, ...]:
    if n_emboli > len(tubes):
        raise ValueError(
            f"`n_emboli` must be at most {len(tubes)}, the number of vessels, got {n_emboli}; ask for fewer"
        )
    longest_mm = max(n * mm for n, mm in zip(shape, spacing_mm, strict=True)) / 2
    emboli = []
    for start, end, radius in sorted(tubes, key=lambda tube: -tube[2])[:n_emboli]:
        x, y, z = (((start + end) / 2 + 1) / 2 * (np.array(shape) - 1)).tolist()
        emboli.append(Embolus((x, y, z), EMBOLUS_SHARE * radius * longest_mm))
    return tuple(emboli)


def _aspect(shape: Sequence[int], spacing_mm: Sequence[float]) -> np.ndarray:
    extent = np.array(shape) * np.array(spacing_mm)
    return extent / extent.max()


def write_phantom(path: PathLike, shape: Sequence[int], affine: np.ndarray, seed: int = 0) -> None:
    """Writes a phantom that is upright in patient coordinates, whichever way the affine's axes point.

    Args:
        path: .nii or .nii.gz file to write; its folder is made if missing.
        shape: (X, Y, Z) of the file, in voxels.
        affine: (4, 4), voxel to RAS millimetres; becomes sform and qform.
        seed: see `make_phantom`.
    """
    path = Path(path)
    to_ras = nib.io_orientation(affine)
    order = np.argsort(to_ras[:, 0])
    spacing_mm = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    phantom = make_phantom([shape[axis] for axis in order], spacing_mm[order].tolist(), seed)
    back = nib.orientations.ornt_transform(np.array([[0, 1], [1, 1], [2, 1]]), to_ras)
    image = nib.Nifti1Image(nib.apply_orientation(phantom, back), affine)
    image.set_qform(affine, code="scanner")
    image.set_sform(affine, code="scanner")
    image.header.set_xyzt_units("mm")
    with complete_or_absent(path) as unfinished:
        nib.save(image, unfinished)


def _ellipse(axes: Sequence[np.ndarray], centre: Sequence[float], radii: Sequence[float]) -> np.ndarray:
    """Marks where an ellipse of two axes or an ellipsoid of three lies."""
    parts = zip(axes, centre, radii, strict=True)
    distance = sum(((axis - middle) / radius) ** 2 for axis, middle, radius in parts)
    return np.asarray(distance) <= 1


def _grow_tree(
    start: np.ndarray, end: np.ndarray, radius: float, branchings: int, generator: np.random.Generator
) -> Iterator[Tube]:
    """Yields start, end and radius of a vessel, then of the two thinner trees that begin at its end."""
    yield start, end, radius
    if branchings == 0:
        return
    along = end - start
    length = np.linalg.norm(along)
    for _ in range(2):
        turned = along + generator.normal(0, 0.6 * length, 3)
        tip = end + 0.8 * length * turned / np.linalg.norm(turned)
        # Murray's law: the cubes of the radii add up.
        yield from _grow_tree(end, tip, radius * 0.5 ** (1 / 3), branchings - 1, generator)


def _draw_tube(
    hu: np.ndarray,
    inside: np.ndarray | None,
    line: Tube,
    aspect: np.ndarray,
    value: float,
) -> None:
    """Sets the voxels around a line, looking at the line's own box alone.

    `line` is start, end and radius; the radius in units of the longest half field of view. Only voxels of
    `inside` are set, if it is given.
    """
    start, end, radius = line
    shape = np.array(hu.shape)
    corners = np.stack([np.minimum(start, end) - radius / aspect, np.maximum(start, end) + radius / aspect])
    low, high = np.rint((corners + 1) / 2 * (shape - 1)).clip(0, shape - 1).astype(int)
    box = tuple(slice(first, last + 1) for first, last in zip(low, high, strict=True))
    grid = np.stack(np.meshgrid(*(np.arange(shape[i])[box[i]] for i in range(3)), indexing="ij"), axis=-1)
    points = (grid / np.maximum(shape - 1, 1) * 2 - 1 - start) * aspect
    along = (end - start) * aspect
    fraction = np.clip(points @ along / (along @ along), 0, 1)
    near = np.linalg.norm(points - fraction[..., None] * along, axis=-1) <= radius
    hu[box][near if inside is None else near & inside[box]] = value
