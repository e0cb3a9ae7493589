"""Tells whether two volumes hold the same voxels, whatever their files, names and headers are."""

import hashlib
import re
from typing import Any, TypeGuard

import numpy as np

# What CT scanners store: padding and 12-bit values clip to the same number in every conversion.
LOWEST_HU, HIGHEST_HU = -1024, 3071
SLAB_X = 16


def voxel_fingerprint(voxels: np.ndarray) -> str:
    """Returns the same 16 hexadecimal digits for every copy of a volume.

    A checkpoint keeps those of its training volumes: they tell that a volume was trained on, and nothing
    about the patient.

    Args:
        voxels: (X, Y, Z) in HU, any real type, axes to the right, anterior and superior.

    Returns:
        the first 64 bits of a SHA-256 over the shape and the voxels: rounded to whole HU, clipped to
        -1024..3071, as little-endian int16 in C order.
    """
    digest = hashlib.sha256(str(tuple(int(length) for length in voxels.shape)).encode())
    for x in range(0, voxels.shape[0], SLAB_X):
        slab = voxels[x : x + SLAB_X]
        slab = slab if slab.dtype.kind in "iu" else np.rint(slab)
        slab = np.clip(slab, LOWEST_HU, HIGHEST_HU)
        digest.update(np.ascontiguousarray(slab, dtype="<i2").data)
    return digest.hexdigest()[:16]


def is_fingerprint(value: Any) -> TypeGuard[str]:
    """Tells whether a value read from a file can be a fingerprint of voxels or the hash of a patient."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{16}", value) is not None
