"""A chest-like volume in HU for tests and smoke runs: contrasts, edges and branching vessels, no anatomy."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.config import PathLike

from bundle.run.atomic import complete_or_absent

AIR_HU, FAT_HU, MUSCLE_HU, LUNG_HU, BONE_HU = -1000, -90, 45, -860, 550
VESSEL_HU = (300, 400)
NOISE_HU = 15
# (centre, radii) along X, Y, Z in half fields of view; without Z, all along it.
BODY = ((0.0, 0.0), (0.94, 0.76))
MUSCLE = ((0.0, 0.0), (0.86, 0.68))
LUNGS = (((0.43, 0.04, 0.0), (0.36, 0.52, 0.92)), ((-0.43, 0.04, 0.0), (0.36, 0.52, 0.92)))
HEART = ((-0.1, 0.22, -0.3), (0.3, 0.28, 0.46))
SPINE = ((0.0, -0.5), (0.11, 0.12))
AORTA = ((-0.1, -0.28), (0.06, 0.06))
TRUNK = np.array([0.0, 0.1, 0.1])
BRANCHINGS = 7
TRUNK_RADIUS = 0.07


def make_phantom(
    shape: Sequence[int], spacing_mm: Sequence[float] = (1.0, 1.0, 1.0), seed: int = 0
) -> np.ndarray:
    """Makes a phantom that fills its field of view, whatever that is.

    Args:
        shape: (X, Y, Z) in voxels; X runs to the right, Y anterior, Z superior.
        spacing_mm: edges of a voxel; only their ratios matter, for round vessels.
        seed: of the vessel trees and the noise.

    Returns:
        (X, Y, Z) int16 in HU: air, fat, muscle, spine and ribs, two lungs, and of 300 to 400 HU heart,
        aorta and a trunk that branches into both lungs; with noise of 15 HU.

    Raises:
        ValueError: if there are not three positive lengths and spacings.
    """
    if len(shape) != 3 or len(spacing_mm) != 3 or min(*shape, *spacing_mm) <= 0:
        raise ValueError(
            f"`shape` and `spacing_mm` must be three positive numbers each, got {shape}, {spacing_mm}"
        )
    generator = np.random.default_rng(seed)
    x, y, z = (axis.astype(np.float32) for axis in np.ogrid[tuple(slice(-1, 1, 1j * n) for n in shape)])
    hu = np.full(shape, AIR_HU, np.float32)
    hu[_ellipse((x, y), *BODY) & (z == z)] = FAT_HU
    hu[_ellipse((x, y), *MUSCLE) & (z == z)] = MUSCLE_HU
    ring = _ellipse((x, y), (0, 0), (0.84, 0.66)) & ~_ellipse((x, y), (0, 0), (0.79, 0.61))
    hu[ring & (np.sin(14 * z + 3 * y) > 0.5)] = BONE_HU
    lungs = np.logical_or.reduce([_ellipse((x, y, z), *lung) for lung in LUNGS])
    hu[lungs] = LUNG_HU
    hu[_ellipse((x, y), *SPINE) & (np.sin(25 * z) > -0.8)] = BONE_HU
    hu[_ellipse((x, y, z), *HEART)] = generator.uniform(*VESSEL_HU)
    hu[_ellipse((x, y), *AORTA) & (z == z)] = generator.uniform(*VESSEL_HU)
    extent = np.array(shape) * np.array(spacing_mm)
    for (centre_x, *_), _ in LUNGS:
        hilum = np.array([0.25 * np.sign(centre_x), 0.0, 0.1])
        tree = _grow_tree(TRUNK, hilum, TRUNK_RADIUS, BRANCHINGS, generator)
        for number, line in enumerate(tree):
            inside = lungs if number else None  # the trunk alone crosses the mediastinum
            _draw_tube(hu, inside, line, extent / extent.max(), generator.uniform(*VESSEL_HU))
    hu += generator.normal(0, NOISE_HU, shape).astype(np.float32)
    return np.rint(hu).astype(np.int16)


def write_phantom(path: PathLike, shape: Sequence[int], affine: np.ndarray, seed: int = 0) -> None:
    """Saves a phantom that stands upright in the patient, whichever way the affine's axes point.

    Args:
        path: .nii or .nii.gz file to write; its folder is made if missing.
        shape: (X, Y, Z) of the file, in voxels.
        affine: (4, 4), voxel to RAS millimetres; becomes sform and qform.
        seed: see `make_phantom`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
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
    """Where an ellipse of two axes or an ellipsoid of three lies."""
    parts = zip(axes, centre, radii, strict=True)
    distance = sum(((axis - middle) / radius) ** 2 for axis, middle, radius in parts)
    return np.asarray(distance) <= 1


def _grow_tree(
    start: np.ndarray, end: np.ndarray, radius: float, branchings: int, generator: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """Start, end and radius of a vessel, then of the two thinner trees that go on from its end."""
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
    line: tuple[np.ndarray, np.ndarray, float],
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
