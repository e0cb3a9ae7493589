"""The marrow of vertebrae, as bright as blood, is no vessel; the aorta beside them is one."""

import numpy as np
import pytest

from bundle.emboli import chest as chest_module
from bundle.emboli.chest import find_chest
from bundle.emboli.spine import find_spine

SPACING_MM = (2.0, 2.0, 4.0)
SHAPE = (150, 120, 32)
MIDDLE, ARCH = 4.0, -70.0
"""Of the spine, in mm from the middle of the volume: to the right, and to the front."""


def in_mm():
    return np.meshgrid(
        *((np.arange(n) - n / 2) * mm for n, mm in zip(SHAPE, SPACING_MM, strict=True)), indexing="ij"
    )


def ball(x, y, at_x, at_y, radius, wide=1.0):
    return ((x - at_x) / wide) ** 2 + (y - at_y) ** 2 < radius**2


@pytest.fixture(scope="module")
def scan():
    """A chest in the venous phase: heart, aorta and marrow of 200 HU, as even as the noise lets them be."""
    x, y, z = in_mm()
    hu = np.where(ball(x, y, 0, 0, 105, 1.35), 40, -1000)
    for side in (-1, 1):
        hu[ball(x, y, side * 72, -5, 68, 0.7)] = -850
    masks = {
        "heart": ball(x, y, -15, 20, 40) & (z < 30),
        "aorta": ball(x, y, MIDDLE - 25, ARCH + 56, 12),
        "marrow": ball(x, y, MIDDLE, ARCH + 27, 18),
    }
    hu[ball(x, y, MIDDLE, ARCH + 27, 25)] = 40
    hu[ball(x, y, MIDDLE, ARCH + 27, 20)] = 500  # cortical bone
    hu[ball(x, y, MIDDLE, ARCH + 2, 16)] = 700  # the arch
    hu[ball(x, y, MIDDLE, ARCH + 6, 7)] = 40  # the canal
    for mask in masks.values():
        hu[mask] = 200
    noise = np.random.default_rng(0).normal(0, 12, SHAPE)
    return (hu + noise).round().astype(np.int16), masks


@pytest.fixture(scope="module")
def chest(scan):
    return find_chest(scan[0], SPACING_MM)


def lumen(chest):
    mask = np.zeros(SHAPE, bool)
    mask[chest.lumen.box] = chest.lumen.wall > 0
    return mask


def test_the_lumen_holds_heart_and_aorta_and_no_marrow_into_which_an_embolus_could_be_put(scan, chest):
    shares = {name: lumen(chest)[mask].mean() for name, mask in scan[1].items()}
    assert shares["heart"] > 0.8 and shares["aorta"] > 0.6 and shares["marrow"] < 0.01


def test_the_spine_is_found_where_it_is(scan):
    lungs = scan[0][::4, ::4, ::4] < -500
    found = find_spine(scan[0], SPACING_MM, lungs, 200)
    assert np.abs(found.x * SPACING_MM[0] - SHAPE[0] - MIDDLE).max() < 5
    assert np.abs(found.y * SPACING_MM[1] - SHAPE[1] - ARCH).max() < 12


@pytest.mark.parametrize(
    "part", [np.s_[:70], np.s_[80:], np.s_[:, 60:]], ids=["left of it", "right of it", "in front of it"]
)
def test_parts_of_a_chest_without_a_spine_have_none(scan, part):
    voxels = np.ascontiguousarray(scan[0][part])
    assert find_spine(voxels, SPACING_MM, voxels[::4, ::4, ::4] < -500, 200) is None


def test_slabs_change_nothing(scan, chest, monkeypatch):
    monkeypatch.setattr(chest_module, "SLAB_SLICES", 7)
    again = find_chest(scan[0], SPACING_MM)
    assert np.array_equal(again.tissue, chest.tissue)
    assert np.array_equal(again.lumen.wall, chest.lumen.wall)
