"""Estimates, by model observers, how well a reader could tell whether a lesion is there.

Each of N sites is seen once with and once without the lesion, in the same noise.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

N_RESAMPLES = 1000
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """Holds an estimate and its 95 % confidence interval."""

    value: float
    low: float
    high: float


def auc_interval(present: np.ndarray, absent: np.ndarray, seed: int = 0) -> Interval:
    """Returns the area under the ROC curve, with an interval by bootstrap over sites.

    The area is the probability that a response with the lesion is above one without it; ties count half
    (Mann-Whitney). The two responses of a site stay together, since they share its noise.

    Args:
        present: (N,) responses with the lesion.
        absent: (N,) responses of the same sites without.
        seed: of the resampling.
    """
    wins = _wins(present, absent)
    return _interval(float(wins.mean()), _resampled(wins, _weights(len(present), seed)))


def auc_change(
    reference: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray], seed: int = 0
) -> Interval:
    """Returns the change of the area under the curve between two readings of the same sites, paired by site.

    Args:
        reference: (N,) responses with and without the lesion, in the original.
        other: responses of the same sites in the reconstruction.
        seed: of the resampling.
    """
    weights = _weights(len(reference[0]), seed)
    wins = [_wins(*reading) for reading in (reference, other)]
    change = float(wins[1].mean() - wins[0].mean())
    return _interval(change, _resampled(wins[1], weights) - _resampled(wins[0], weights))


def laguerre_gauss_channels(distance_mm: np.ndarray, width_mm: float, n_channels: int = 4) -> np.ndarray:
    """Makes the channels of an observer that knows the lesion's place but not its shape.

    Paper: Gallas and Barrett 2003, doi:10.1364/JOSAA.20.001725, eq. 15 and 16.

    Args:
        distance_mm: (...) distances of pixels from the lesion's centre.
        width_mm: width of the Gaussian.
        n_channels: number of Laguerre polynomials, of degree 0, 1, ...

    Returns:
        (n_channels, ...) of unit energy.
    """
    at = 2 * np.pi * np.square(distance_mm / width_mm)
    polynomials = [np.ones_like(at), 1 - at]
    for n in range(1, n_channels - 1):
        polynomials.append(((2 * n + 1 - at) * polynomials[n] - n * polynomials[n - 1]) / (n + 1))
    channels = np.stack(polynomials[:n_channels]) * np.exp(-at / 2)
    energy = np.sqrt(np.square(channels).sum(axis=tuple(range(1, channels.ndim)), keepdims=True))
    return channels / np.maximum(energy, np.finfo(float).tiny)


def hotelling_responses(
    present: np.ndarray, absent: np.ndarray, n_folds: int = 5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the responses of a channelized Hotelling observer that was trained on the other folds' sites.

    Paper: Barrett et al. 1993, doi:10.1073/pnas.90.21.9758.

    Args:
        present: (N, C) channel outputs of N sites with the lesion.
        absent: (N, C) of the same sites without.
        n_folds: parts of the sites; each is read by an observer that was trained on the others.
        seed: of the folds.

    Returns:
        (N,) responses with and without.

    Raises:
        ValueError: if the observer of a fold would be trained on no more sites than there are channels.
    """
    n_sites, n_channels = present.shape
    if n_sites - -(-n_sites // n_folds) <= n_channels:
        raise ValueError(
            f"`present` must hold enough sites to train {n_channels} channels, got {n_sites}; leave the "
            "observer out"
        )
    fold = np.random.default_rng(seed).permutation(n_sites) % n_folds
    responses = np.empty((2, n_sites))
    for n in range(n_folds):
        taught = fold != n
        centred = [part[taught] - part[taught].mean(axis=0) for part in (present, absent)]
        covariance = sum(part.T @ part for part in centred) / (2 * (np.count_nonzero(taught) - 1))
        signal = present[taught].mean(axis=0) - absent[taught].mean(axis=0)
        weights = np.linalg.lstsq(covariance, signal, rcond=None)[0]
        responses[0, ~taught], responses[1, ~taught] = present[~taught] @ weights, absent[~taught] @ weights
    return responses[0], responses[1]


def bootstrap_mean(values: np.ndarray, seed: int = 0) -> Interval:
    """Returns the mean of (N,) values with a bootstrap interval, which is NaN for a single value."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return Interval(float(values.mean()) if len(values) else np.nan, np.nan, np.nan)
    weights = _weights(len(values), seed)
    return _interval(float(values.mean()), weights @ values / len(values))


def _wins(present: np.ndarray, absent: np.ndarray) -> np.ndarray:
    """Returns (N, M): 1 where the response with the lesion is higher, 0.5 where both are equal."""
    above = present[:, None] - absent[None, :]
    return (np.sign(above) + 1) / 2


def _weights(n_sites: int, seed: int) -> np.ndarray:
    """Draws (B, N): how often each resample holds each site."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(n_sites, np.full(n_sites, 1 / n_sites), N_RESAMPLES).astype(float)


def _resampled(wins: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the (B,) areas of the resamples; a site and its copy count as two sites."""
    return ((weights @ wins) * weights).sum(axis=1) / weights.sum(axis=1) ** 2


def _interval(value: float, resampled: np.ndarray) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, (tail, 1 - tail))
    return Interval(value, float(low), float(high))
