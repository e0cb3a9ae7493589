"""Noise spectra of noise that is known."""

import numpy as np
import pytest
from scipy import ndimage

from bundle.metrics.texture import BANDS, noise_spectrum

SPACING_MM = (0.7, 0.7, 1.0)


def noise(sigma_hu=20.0, shape=(64, 64, 12)):
    return 350 + np.random.default_rng(3).normal(0, sigma_hu, shape)


def everywhere(volume):
    return np.ones(volume.shape, bool)


def test_a_volume_compared_with_itself_has_ratios_of_one():
    image = noise()
    found = noise_spectrum(image, image.copy(), everywhere(image), SPACING_MM)
    assert found.nps_ratio == dict.fromkeys(BANDS, 1.0) and found.noise_sd_ratio == 1


def test_a_linear_change_gives_its_square_in_every_band():
    image = noise()
    found = noise_spectrum(image, 0.8 * image + 20, everywhere(image), SPACING_MM)
    assert list(found.nps_ratio.values()) == pytest.approx([0.64] * 3)
    assert found.noise_sd_ratio == pytest.approx(0.8)


def test_white_noise_has_a_flat_spectrum_of_its_variance_times_the_area_of_a_pixel():
    image = noise(20, (96, 96, 40))
    found = noise_spectrum(image, image, everywhere(image), SPACING_MM)
    # the first ring has lost what the plane took
    assert np.allclose(found.original[1:], 400 * 0.7**2, rtol=0.15)
    assert found.frequency_per_mm[-1] == pytest.approx(0.5 / 0.7, rel=0.01)


def test_a_blur_takes_the_high_frequencies_by_its_transfer_function():
    image, sigma = noise(20, (96, 96, 30)), 0.8
    blurred = ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="wrap")
    found = noise_spectrum(image, blurred, everywhere(image), SPACING_MM)
    expected = np.exp(-((2 * np.pi * found.frequency_per_mm * sigma * 0.7) ** 2))
    inner = slice(2, 8)
    assert np.allclose(found.recon[inner] / found.original[inner], expected[inner], atol=0.05)
    assert found.nps_ratio["low"] > found.nps_ratio["middle"] > found.nps_ratio["high"]


def test_a_gradient_of_contrast_agent_is_no_noise():
    image = noise(1)
    steep = image + 5 * np.arange(64)[:, None, None]
    found = noise_spectrum(image, steep, everywhere(image), SPACING_MM)
    assert found.noise_sd_ratio == pytest.approx(1)


def test_only_even_tissue_is_looked_at_and_too_little_of_it_gives_nothing():
    image, even = noise(), np.zeros((64, 64, 12), bool)
    even[20:44, 20:44, 3:6] = True
    elsewhere = np.where(even, image, 0)
    assert noise_spectrum(image, elsewhere, even, SPACING_MM).noise_sd_ratio == 1
    even[31:33] = even[:, 31:33] = False
    assert noise_spectrum(image, image, even, SPACING_MM) is None
    assert noise_spectrum(image * 0, image, everywhere(image), SPACING_MM) is None
