"""Tells what a volume costs as codes, and how many of the codes are used."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class CodeUse(NamedTuple):
    """Tells how a codebook is used.

    Attributes:
        usage: share of the codes that occur.
        perplexity: number of codes that would give the same entropy if all were equally frequent.
        entropy_bits: bits per index, from the frequencies alone.
    """

    usage: float
    perplexity: float
    entropy_bits: float


def code_use(counts: np.ndarray) -> CodeUse:
    """Measures how a codebook is used.

    Args:
        counts: (K,) how often each code occurs, in one volume or in all.
    """
    share = counts[counts > 0] / max(counts.sum(), 1)
    entropy = float(-(share * np.log2(share)).sum())
    return CodeUse(np.count_nonzero(counts) / max(len(counts), 1), 2**entropy, entropy)


def nominal_bits_per_voxel(num_embeddings: int, stride: int) -> float:
    """Returns the bits of an index per voxel that it stands for: log2 K / stride^3."""
    return math.log2(num_embeddings) / stride**3


def bits_per_voxel(n_bytes: int, n_voxels: int) -> float:
    """Returns the bits per voxel of a whole file, header included."""
    return 8 * n_bytes / n_voxels
