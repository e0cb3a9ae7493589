"""Errors by tissue, of errors that are known."""

import math

import numpy as np
import pytest

from bundle.metrics.regions import region_errors

WINDOW = (-1000.0, 1000.0)


def test_every_region_has_its_own_error_and_an_empty_one_has_none():
    image = np.zeros((8, 9, 6), np.int16)
    tissue = np.zeros(image.shape, np.uint8)
    tissue[:4], tissue[4:6] = 1, 2
    recon = image.copy()
    recon[:4] += 10
    recon[4:6, ::3] -= 30
    found = region_errors(
        image, recon, tissue, {"all": (0, 1, 2), "one": (1,), "two": (2,), "none": (3,)}, *WINDOW
    )

    assert found["one"] == (10, 10, 10, 4 * 9 * 6)
    assert found["two"] == pytest.approx((10, -10, math.sqrt(300), 2 * 9 * 6))
    assert found["all"].bias_hu == pytest.approx((10 * 4 - 10 * 2) / 8)
    assert found["none"].n_voxels == 0 and math.isnan(found["none"].mae_hu)


def test_what_lies_outside_of_the_window_is_no_error():
    image, recon = np.full((4, 4, 4), -1000, np.int16), np.full((4, 4, 4), -2048, np.int16)
    found = region_errors(image, recon, np.zeros(image.shape, np.uint8), {"all": (0,)}, *WINDOW)
    assert found["all"].mae_hu == 0


def test_slice_by_slice_gives_the_errors_of_the_whole_volume():
    generator = np.random.default_rng(0)
    image, recon = generator.integers(-1200, 1200, (2, 13, 11, 9), np.int16)
    tissue = generator.integers(0, 6, image.shape).astype(np.uint8)
    found = region_errors(image, recon, tissue, {"two": (2, 5)}, *WINDOW)["two"]
    inside = np.isin(tissue, (2, 5))
    error = (recon.clip(*WINDOW).astype(float) - image.clip(*WINDOW))[inside]
    expected = np.abs(error).mean(), error.mean(), math.sqrt(np.square(error).mean()), inside.sum()
    assert found == pytest.approx(expected, rel=1e-6)
