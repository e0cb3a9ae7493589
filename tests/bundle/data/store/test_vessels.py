"""What holds contrast agent and what only looks like it, in a chest made of boxes."""

import numpy as np
import pytest

from bundle.data.store.body import find_body
from bundle.data.store.vessels import find_vessels

SPACING_MM = (3.0, 3.0, 3.0)
HEART = np.s_[40:56, 36:56, 8:24]
AORTA = np.s_[41:47, 29:35, 4:36]
BRANCH = np.s_[18:20, 40:42, 6:34]
VEIN = np.s_[52:56, 46:52, 25:36]
SPINE = np.s_[42:54, 16:27, :]
SPLEEN = np.s_[14:30, 16:34, 0:6]


def chest(blood_hu=350, vein_hu=350):
    """Samples in HU: a body in air with lungs, ribs, a spine that reaches the back, and filled vessels."""
    generator = np.random.default_rng(0)
    hu = np.full((96, 80, 40), -1000.0)
    hu[8:88, 8:72] = 40
    hu[10:12, 20:60] = hu[84:86, 20:60] = 600
    for lung in (np.s_[14:40, 14:64, 3:37], np.s_[56:82, 14:64, 3:37]):
        hu[lung] = -870
    hu[SPINE] = hu[47:49, 10:16] = 550
    spongy = hu[43:53, 17:26]
    spongy[...] = generator.normal(230, 80, spongy.shape)
    hu[SPLEEN] = 170 if blood_hu > 150 else 45
    for vessel in (HEART, AORTA, BRANCH):
        hu[vessel] = blood_hu
    hu[VEIN] = vein_hu
    return np.rint(hu + generator.normal(0, 15, hu.shape)).astype(np.int16)


def find(samples, spacing_mm=SPACING_MM):
    return find_vessels(samples, find_body(samples), spacing_mm)


def share(mask, place):
    return mask[place].mean()


@pytest.mark.parametrize("blood_hu", [230, 350, 800])
def test_heart_and_vessels_are_found_and_bone_and_spleen_are_not(blood_hu):
    vessels = find(chest(blood_hu, vein_hu=blood_hu))
    assert all(share(vessels.is_filled, place) > 0.95 for place in (HEART, AORTA, BRANCH, VEIN))
    assert share(vessels.is_filled, SPINE) < 0.01
    assert share(vessels.is_filled, SPLEEN) < 0.01
    outside = vessels.is_filled.copy()
    for place in (HEART, AORTA, BRANCH, VEIN, SPINE):
        outside[place] = False
    assert not outside.any()


def test_only_the_vessels_inside_a_lung_are_said_to_lie_there():
    vessels = find(chest())
    assert share(vessels.is_in_lung, BRANCH) > 0.9
    assert not vessels.is_in_lung[HEART].any() and not vessels.is_in_lung[AORTA].any()


def test_a_chest_without_contrast_agent_has_no_vessels():
    vessels = find(chest(blood_hu=45, vein_hu=45))
    assert not vessels.is_filled.any() and vessels.lumen_share < 0.005


@pytest.mark.parametrize("axes", [0, 1, 2, (0, 1)])
def test_a_mirrored_chest_has_the_mirrored_vessels(axes):
    samples = chest()
    mirrored = find(np.flip(samples, axes)).is_filled
    assert np.mean(np.flip(mirrored, axes) == find(samples).is_filled) > 0.999


def test_thick_slices_change_nothing_but_the_number_of_samples():
    thick = find(chest()[..., ::4], (3.0, 3.0, 12.0)).is_filled
    assert share(thick, np.s_[40:56, 36:56, 2:6]) > 0.95
    assert share(thick, np.s_[42:54, 16:27]) < 0.01


def test_a_vein_of_undiluted_contrast_agent_takes_nothing_with_it():
    vessels = find(chest(vein_hu=1500))
    assert share(vessels.is_filled, VEIN) == 0
    assert all(share(vessels.is_filled, place) > 0.95 for place in (HEART, AORTA, BRANCH))


def test_without_lungs_an_even_tube_is_found_but_not_a_shell_of_dense_bone():
    samples = np.full((40, 40, 20), -1000, np.int16)
    samples[4:36, 4:36] = 40
    samples[8:14, 8:14] = 300
    samples[20:32, 20:32] = 900
    samples[22:30, 22:30] = np.random.default_rng(0).normal(250, 80, (8, 8, 20))
    filled = find(samples).is_filled
    assert share(filled, np.s_[8:14, 8:14]) == 1
    assert not filled[14:].any()


@pytest.mark.parametrize("half", [np.s_[16:48, 8:72], np.s_[48:80, 8:72]])
def test_a_crop_through_the_heart_has_its_vessels_and_no_bone(half):
    filled = find(chest()[half]).is_filled
    whole = find(chest()).is_filled[half]
    assert np.count_nonzero(filled & whole) > 0.9 * np.count_nonzero(whole)
    assert np.count_nonzero(filled & ~whole) < 0.02 * np.count_nonzero(filled)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 3), (1, 30, 30), (30, 1, 30), (30, 30, 1), (5, 6, 7)])
@pytest.mark.parametrize("hu", [-1000, -870, 40, 300, 2000])
def test_volumes_of_any_size_and_one_value_are_taken(shape, hu):
    filled = find(np.full(shape, hu, np.int16)).is_filled
    assert filled.shape == shape
    assert filled.all() if hu == 300 else not filled.any()


@pytest.mark.parametrize("spacing_mm", [(1e-3, 1e-3, 1e-3), (700.0, 700.0, 1000.0)])
def test_spacings_in_another_unit_are_taken(spacing_mm):
    assert find(chest()[..., 10:20], spacing_mm).is_filled.shape == (96, 80, 10)
