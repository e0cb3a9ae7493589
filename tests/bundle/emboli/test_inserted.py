"""Inserted emboli: their size, their place, and that they touch nothing else."""

import math

import numpy as np
import pytest

from bundle.emboli.inserted import GAP_MM, SIZES_MM, find_changes, insert, sphere_occupancy

SPACING_MM = (1.2, 1.2, 1.2)


@pytest.mark.parametrize("parity", [0, 1])
@pytest.mark.parametrize("contrast", [1.0, 0.15])
def test_no_voxel_outside_of_the_vessels_changes(phantom, contrast, parity):
    changed = insert(phantom.truth.hu, phantom.changes, contrast, parity) != phantom.truth.hu
    assert changed.any() and not (changed & ~phantom.truth.vessels).any()


def test_an_embolus_adds_the_same_to_whatever_noise_there_is(phantom):
    once = insert(phantom.truth.hu, phantom.changes, 1.0, 0).astype(int) - phantom.truth.hu
    smooth = np.zeros_like(phantom.truth.hu)
    assert np.array_equal(once, insert(smooth, phantom.changes, 1.0, 0))


def test_each_site_is_in_one_of_the_two_volumes_and_they_are_equally_many(phantom):
    parities = [change.site.parity for change in phantom.changes]
    assert abs(parities.count(0) - parities.count(1)) <= 2 * len(SIZES_MM)
    both = [insert(phantom.truth.hu, phantom.changes, 1.0, parity) for parity in (0, 1)]
    assert not ((both[0] != phantom.truth.hu) & (both[1] != phantom.truth.hu)).any()


def test_sites_keep_their_distance_and_every_size_is_there(phantom):
    sites = [change.site for change in phantom.changes]
    centres = np.array([site.centre for site in sites]) * SPACING_MM
    radii = np.array([site.size_mm / 2 for site in sites])
    distance = np.linalg.norm(centres[:, None] - centres, axis=-1) - radii[:, None] - radii
    np.fill_diagonal(distance, np.inf)
    assert distance.min() >= GAP_MM - 1e-9
    assert {site.size_mm for site in sites} == set(SIZES_MM)
    assert any(site.is_in_lung for site in sites) and not all(site.is_in_lung for site in sites)


@pytest.mark.parametrize("size_mm", SIZES_MM)
def test_an_embolus_far_from_the_wall_takes_the_contrast_of_its_volume(phantom, size_mm):
    """All its change over blood less clot is the volume of the ball."""
    deep = [
        c for c in phantom.changes if c.site.size_mm == size_mm and (c.lumen_share[c.hu < 0] > 0.99).all()
    ]
    volumes = [-c.hu.sum() / (c.site.blood_hu - 55) * math.prod(SPACING_MM) for c in deep]
    assert len(deep) > 1
    assert np.mean(volumes) == pytest.approx(math.pi / 6 * size_mm**3, rel=0.03)


def test_blood_is_measured_around_each_site(phantom):
    assert np.allclose([c.site.blood_hu for c in phantom.changes], 350, atol=12)


def test_a_seed_gives_the_same_sites_and_another_seed_others(phantom):
    again = find_changes(phantom.truth.hu, SPACING_MM, phantom.chest.lumen)
    assert [c.site for c in again] == [c.site for c in phantom.changes]
    other = find_changes(phantom.truth.hu, SPACING_MM, phantom.chest.lumen, seed=1)
    assert [c.site for c in other] != [c.site for c in phantom.changes]


def test_a_volume_without_lumen_has_no_sites(phantom):
    assert find_changes(phantom.truth.hu, SPACING_MM, None) == []


@pytest.mark.parametrize("spacing_mm", [(0.5, 0.5, 0.5), (0.7, 0.7, 2.5)])
@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_the_occupancy_of_a_sphere_sums_to_its_volume(spacing_mm, shift):
    offsets = [(np.arange(-16, 17) + shift) * edge for edge in spacing_mm]
    occupancy = sphere_occupancy(offsets, 3.0, spacing_mm)
    assert occupancy.sum() * math.prod(spacing_mm) == pytest.approx(4 / 3 * math.pi * 27, rel=0.01)
    assert 0 <= occupancy.min() and occupancy.max() <= 1 + 1e-9
