"""Slopes and edges whose width is known."""

import math

import numpy as np
import pytest
from scipy import ndimage

from bundle.metrics.sharpness import edge_width, gradient_ratio

SPACING_MM = (0.7, 0.7, 2.0)
WINDOW = (-1000.0, 1000.0)


def ball(sigma_mm):
    """A lung of air in soft tissue, blurred in the axial plane, and where the lung is."""
    x, y = np.meshgrid(*(np.arange(96) - 47.5,) * 2, indexing="ij")
    lung = np.repeat((np.hypot(x, y) * 0.7 < 22)[..., None], 4, axis=2)
    hu = np.where(lung, -860.0, 40.0)
    return ndimage.gaussian_filter(hu, (sigma_mm / 0.7, sigma_mm / 0.7, 0)), lung


@pytest.mark.parametrize("sigma_mm", [0.8, 1.2])
def test_the_edge_of_a_blurred_step_is_as_wide_as_the_error_function_says(sigma_mm):
    image, lung = ball(sigma_mm)
    found = edge_width(image, image, lung, SPACING_MM)
    assert found.original_mm == found.recon_mm == pytest.approx(2.563 * sigma_mm, rel=0.08)
    assert found.n_edges > 100


def test_blur_widens_the_edge_by_its_own_variance():
    image, lung = ball(0.8)
    blurred = ndimage.gaussian_filter(image, (1 / 0.7, 1 / 0.7, 0))
    found = edge_width(image, blurred, lung, SPACING_MM)
    assert found.recon_mm == pytest.approx(2.563 * math.hypot(0.8, 1), rel=0.08)


def test_a_volume_without_lung_has_no_edge():
    image, lung = ball(0.8)
    assert edge_width(image, image, np.zeros_like(lung), SPACING_MM) is None
    assert edge_width(np.full_like(image, 40), image, lung, SPACING_MM) is None


def test_the_gradient_of_a_linear_change_is_its_factor_and_of_itself_one():
    image = np.random.default_rng(0).normal(0, 100, (20, 21, 9))
    inside = np.ones(image.shape, bool)
    assert gradient_ratio(image, image.copy(), inside, SPACING_MM, *WINDOW) == 1
    assert gradient_ratio(image, 0.5 * image + 9, inside, SPACING_MM, *WINDOW) == pytest.approx(0.5, rel=1e-5)


def test_slopes_outside_of_the_region_or_the_window_do_not_count():
    image = np.random.default_rng(0).normal(0, 100, (20, 21, 9))
    inside = np.zeros(image.shape, bool)
    inside[3:10] = True
    recon = image.copy()
    recon[13:] = 0
    assert gradient_ratio(image, recon, inside, SPACING_MM, *WINDOW) == 1
    assert math.isnan(gradient_ratio(image + 3000, recon, inside, SPACING_MM, *WINDOW))


def test_slice_by_slice_gives_the_slope_of_the_whole_volume():
    generator = np.random.default_rng(0)
    image, recon = generator.normal(0, 100, (2, 12, 11, 9))
    inside = generator.random(image.shape) < 0.5
    inner = (slice(1, -1),) * 3
    steep = [
        np.sqrt(sum(np.square(part) for part in np.gradient(one.clip(*WINDOW), *SPACING_MM)))[inner]
        for one in (image, recon)
    ]
    expected = steep[1][inside[inner]].mean() / steep[0][inside[inner]].mean()
    assert gradient_ratio(image, recon, inside, SPACING_MM, *WINDOW) == pytest.approx(expected, rel=1e-6)
