"""The fingerprint of a volume's voxels."""

import hashlib

import numpy as np
import pytest

from bundle.data.volumes.fingerprint import voxel_fingerprint


@pytest.fixture
def voxels():
    return np.random.default_rng(0).integers(-1024, 3072, (37, 5, 9)).astype(np.int16)


def test_it_is_a_sha256_of_shape_and_voxels_in_c_order(voxels):
    expected = hashlib.sha256(b"(37, 5, 9)" + voxels.astype("<i2").tobytes(order="C")).hexdigest()[:16]

    assert voxel_fingerprint(voxels) == expected


@pytest.mark.parametrize(
    "change",
    [
        np.asfortranarray,
        lambda voxels: voxels.astype(np.float32) + 0.3,
        lambda voxels: voxels.astype(np.int32),
        lambda voxels: voxels.astype(">i2"),
        lambda voxels: np.where(voxels == voxels.min(), -3024, voxels),
    ],
)
def test_copies_of_a_volume_have_the_same(voxels, change):
    voxels[0, 0, 0] = -1024

    assert voxel_fingerprint(change(voxels)) == voxel_fingerprint(voxels)


@pytest.mark.parametrize(
    "change",
    [
        lambda voxels: voxels[::-1],
        lambda voxels: voxels[:-1],
        lambda voxels: voxels.reshape(5, 37, 9),
        lambda voxels: voxels + (np.arange(voxels.size).reshape(voxels.shape) == 70),
    ],
)
def test_other_volumes_have_another(voxels, change):
    voxels[...] = np.minimum(voxels, 3000)

    assert voxel_fingerprint(change(voxels)) != voxel_fingerprint(voxels)
