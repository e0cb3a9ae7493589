"""Figures in words and numbers that people read."""

import math

import pytest

from bundle.reports.wording import WORDS, spoken, word_for


@pytest.mark.parametrize(
    ("told", "text"),
    [
        (("psnr", 38.456), "38.46 dB"),
        (("psnr", "inf"), "\N{INFINITY} dB"),
        (("clot_contrast", 0.9134, 0.87, 0.94), "91 % (87 % to 94 %)"),
        (("clot_contrast", 1.127e-05), "0 %"),
        (("bias_hu", -3.21), "\N{MINUS SIGN}3.2 HU"),
        (("bias_hu", 0.01), "0.0 HU"),
        (("clot_auc_npw_change", -0.0001), "0.000"),
        (("lpips", None), "\N{EN DASH}"),
        (("lpips", math.nan), "\N{EN DASH}"),
        (("lpips", 0.2, None, math.nan), "0.2000"),
    ],
)
def test_a_figure_is_told_with_its_unit_and_as_many_digits_as_mean_something(told, text):
    assert spoken(*told) == text


def test_a_difference_of_shares_is_told_in_points_since_per_cent_would_be_of_the_first():
    assert spoken("clot_contrast", 0.08, -0.02, 0.1, signed=True) == "+8 (\N{MINUS SIGN}2 to +10) points"


def test_a_figure_without_words_is_called_by_its_name():
    assert word_for("something_new").label == "something new" and spoken("something_new", 1.5) == "1.5"


@pytest.mark.parametrize("metric", WORDS)
def test_a_difference_of_every_figure_can_be_told(metric):
    assert spoken(metric, 3.0, -1.5, 4.0, signed=True).startswith("+")
    assert not spoken(metric, 0.0, signed=True).startswith("+")
