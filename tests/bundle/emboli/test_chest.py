"""Tissues of a phantom whose anatomy is known."""

import numpy as np
import pytest

from bundle.emboli import chest as chest_module
from bundle.emboli.chest import WALL_STEP_MM, Tissue, find_chest

SPACING_MM = (1.2, 1.2, 1.2)


def lumen_mask(case):
    mask = np.zeros(case.truth.hu.shape, bool)
    mask[case.chest.lumen.box] = case.chest.lumen.wall > 0
    return mask


def test_the_lumen_lies_inside_the_vessels_and_holds_most_of_them(phantom):
    mask = lumen_mask(phantom)
    assert not (mask & ~phantom.truth.vessels).any()
    assert np.count_nonzero(mask) > 0.7 * np.count_nonzero(phantom.truth.vessels)
    assert phantom.chest.lumen.blood_hu == pytest.approx(350, abs=5)


def test_the_tissues_have_the_phantoms_densities(phantom):
    mean = {tissue: phantom.truth.hu[phantom.chest.tissue == tissue].mean() for tissue in Tissue}
    assert mean[Tissue.LUNG] == pytest.approx(-862, abs=10)
    assert mean[Tissue.SOFT] == pytest.approx(47, abs=5)
    assert mean[Tissue.VESSEL] == pytest.approx(350, abs=5)
    assert mean[Tissue.BONE] == pytest.approx(545, abs=15)
    assert mean[Tissue.OUTSIDE] < -900


def test_bone_beside_a_vessel_is_none(phantom):
    """Ribs of the phantom touch vessels of the lungs."""
    assert phantom.truth.hu[phantom.chest.tissue == Tissue.VESSEL].max() < 480


@pytest.mark.parametrize("depth_mm", [1.5, 3.0, 5.0])
def test_the_distance_to_the_wall_is_that_of_the_heart(phantom, depth_mm):
    """The heart is an ellipsoid whose left end lies at -0.4 of half the field of view."""
    lumen, shape = phantom.chest.lumen, np.array(phantom.truth.hu.shape)
    at_share = np.array([-0.4 + depth_mm / 1.2 / (shape[0] / 2), 0.22, -0.3])
    at = np.rint((at_share + 1) / 2 * (shape - 1)).astype(int) - lumen.origin
    assert lumen.wall[tuple(at)] * WALL_STEP_MM == pytest.approx(depth_mm, abs=1.3)


def test_slabs_change_nothing(phantom, monkeypatch):
    monkeypatch.setattr(chest_module, "SLAB_SLICES", 7)
    again = find_chest(phantom.truth.hu, SPACING_MM)
    assert np.array_equal(again.tissue, phantom.chest.tissue)
    assert np.array_equal(again.lumen.wall, phantom.chest.lumen.wall)


def test_a_volume_without_contrast_agent_has_no_lumen(phantom):
    plain = np.where(phantom.truth.hu > 200, 45, phantom.truth.hu).astype(np.int16)
    found = find_chest(plain, SPACING_MM)
    assert found.lumen is None and not (found.tissue == Tissue.VESSEL).any()
    assert (found.tissue == Tissue.LUNG).any()
