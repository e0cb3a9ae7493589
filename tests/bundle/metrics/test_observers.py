"""Observers of lesions whose visibility is known."""

import numpy as np
import pytest
from scipy.stats import norm

from bundle.metrics.observers import (
    auc_change,
    auc_interval,
    bootstrap_mean,
    hotelling_responses,
    laguerre_gauss_channels,
)


def responses(distance, n_sites=400, seed=1):
    noise = np.random.default_rng(seed).normal(size=(2, n_sites))
    return noise[0] + distance, noise[1]


def test_noise_alone_is_a_coin_flip_inside_its_interval():
    found = auc_interval(*responses(0))
    assert found.low < 0.5 < found.high and found.high - found.low < 0.12


@pytest.mark.parametrize("distance", [0.5, 1.0, 2.0])
def test_the_area_of_two_normal_responses_is_the_known_one(distance):
    found = auc_interval(*responses(distance, 2000))
    assert found.value == pytest.approx(norm.cdf(distance / np.sqrt(2)), abs=0.02)
    assert found.low < found.value < found.high


def test_ties_count_half_and_perfect_answers_one():
    assert auc_interval(np.ones(5), np.ones(5)).value == 0.5
    assert auc_interval(np.arange(5, 9), np.arange(4)).value == 1


def test_the_same_reading_has_a_change_of_zero_and_a_worse_one_is_below_zero():
    present, absent = responses(1.5)
    assert auc_change((present, absent), (present, absent)) == (0, 0, 0)
    worse = auc_change((present, absent), (present - 1, absent))
    assert worse.high < 0


def test_pairing_makes_the_interval_of_a_small_change_narrow():
    present, absent = responses(1)
    other = responses(1, seed=2)
    slight = np.random.default_rng(5).normal(0, 0.1, len(present))
    paired = auc_change((present, absent), (present + slight, absent))
    unpaired = auc_change((present, absent), other)
    assert paired.high - paired.low < 0.5 * (unpaired.high - unpaired.low)


def test_the_bootstrap_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(0)
    hits = [
        low <= 3 <= high for _, low, high in (bootstrap_mean(generator.normal(3, 2, 40)) for _ in range(200))
    ]
    assert 0.88 < np.mean(hits) < 0.99
    assert np.isnan(bootstrap_mean(np.array([4.0])).low) and bootstrap_mean(np.array([4.0])).value == 4


def test_channels_are_orthogonal():
    at = np.hypot(*np.meshgrid(*(np.arange(-60, 61) * 0.25,) * 2))
    channels = laguerre_gauss_channels(at, 6.0).reshape(4, -1)
    assert np.allclose(channels @ channels.T, np.eye(4), atol=0.02)


def test_a_hotelling_observer_reaches_the_area_of_the_optimal_one_and_none_without_a_signal():
    generator = np.random.default_rng(2)
    mixing = generator.normal(size=(4, 4))
    noise = generator.normal(size=(2, 1500, 4)) @ mixing
    signal = np.array([0.6, -0.3, 0.2, 0.1])
    optimal = norm.cdf(np.sqrt(signal @ np.linalg.inv(mixing.T @ mixing) @ signal / 2))
    present, absent = hotelling_responses(noise[0] + signal, noise[1])
    assert auc_interval(present, absent).value == pytest.approx(optimal, abs=0.03)
    blind = auc_interval(*hotelling_responses(noise[0], noise[1]))
    assert blind.low - 0.02 < 0.5 < blind.high + 0.02


def test_too_few_sites_to_teach_an_observer_are_refused():
    with pytest.raises(ValueError, match="enough sites to train 4 channels, got 5"):
        hotelling_responses(np.zeros((5, 4)), np.zeros((5, 4)))
