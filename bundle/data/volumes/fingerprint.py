"""Recognizes copies of a volume by their voxels, whatever their files, names and headers say."""

import hashlib
import re
from typing import Any, TypeGuard

import numpy as np

# CT scanners store 12 bits; clipping to their range makes padding equal in every conversion of a scan.
LOWEST_HU, HIGHEST_HU = -1024, 3071
SLAB_X = 16


def voxel_fingerprint(voxels: np.ndarray) -> str:
    """Returns the same 16 hexadecimal digits for every copy of a volume.

    A checkpoint keeps the fingerprints of its training volumes. They show whether it was trained on a volume,
    and say nothing about the patient.

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
