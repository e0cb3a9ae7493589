"""What a volume costs as codes, and how many of the codes are used at all."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class CodeUse(NamedTuple):
    """How a codebook is used.

    Attributes:
        usage: share of the codes that occur.
        perplexity: number of codes that would give the same entropy if all were equally frequent.
        entropy_bits: per index, of their frequencies alone.
    """

    usage: float
    perplexity: float
    entropy_bits: float


def code_use(counts: np.ndarray) -> CodeUse:
    """Usage of a codebook.

    Args:
        counts: (K,) how often each code occurs, in one volume or in all.
    """
    share = counts[counts > 0] / max(counts.sum(), 1)
    entropy = float(-(share * np.log2(share)).sum())
    return CodeUse(np.count_nonzero(counts) / max(len(counts), 1), 2**entropy, entropy)


def nominal_bits_per_voxel(num_embeddings: int, stride: int) -> float:
    """Bits of an index over the voxels it stands for: log2 K / stride^3."""
    return math.log2(num_embeddings) / stride**3


def bits_per_voxel(n_bytes: int, n_voxels: int) -> float:
    """Bits per voxel of a file, header and all."""
    return 8 * n_bytes / n_voxels
