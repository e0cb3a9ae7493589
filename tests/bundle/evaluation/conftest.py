"""A phantom whose vessels are known, and ways to damage a volume."""

from typing import NamedTuple

import numpy as np
import pytest
from scipy import ndimage

from bundle.data.volumes.phantom import LabelledPhantom, make_labelled_phantom
from bundle.evaluation.cases import RASVolume
from bundle.evaluation.chest import Chest, find_chest
from bundle.evaluation.emboli import Change, find_changes

SHAPE, SPACING_MM = (150, 120, 84), (1.2, 1.2, 1.2)


class PhantomCase(NamedTuple):
    truth: LabelledPhantom
    volume: RASVolume
    chest: Chest
    changes: list[Change]


@pytest.fixture(scope="session")
def phantom() -> PhantomCase:
    truth = make_labelled_phantom(SHAPE, SPACING_MM, seed=0, blood_hu=350, noise_hu=20)
    chest = find_chest(truth.hu, SPACING_MM)
    volume = RASVolume(truth.hu, SPACING_MM, np.diag([*SPACING_MM, 1]))
    return PhantomCase(truth, volume, chest, find_changes(truth.hu, SPACING_MM, chest.lumen))


@pytest.fixture(scope="session")
def blur():
    """Blurs int16 HU by so many mm in space."""

    def make(voxels: np.ndarray, sigma_mm: float) -> np.ndarray:
        sigma = [sigma_mm / edge for edge in SPACING_MM]
        return np.rint(ndimage.gaussian_filter(voxels.astype(np.float32), sigma)).astype(np.int16)

    return make


@pytest.fixture(scope="session")
def wipe(phantom):
    """Closes everything dark inside the vessels, 1 mm off their walls."""
    lumen = phantom.chest.lumen

    def make(voxels: np.ndarray) -> np.ndarray:
        wiped = voxels.copy()
        inside = wiped[lumen.box]
        closed = ndimage.grey_closing(inside, size=(7, 7, 7))
        inside[lumen.wall > 20] = closed[lumen.wall > 20]
        return wiped

    return make
