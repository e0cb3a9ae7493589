"""A patch store without volumes, and the voxels of one."""

import numpy as np
import pytest

from bundle.data.store.store import PatchStore

VOXELS = np.random.default_rng(0).integers(-2048, 3072, (20, 18, 40)).astype(np.int16)


@pytest.fixture
def store(tmp_path):
    return PatchStore(tmp_path / "cache")


def case_of(path):
    return {"image": str(path), "patient": "p1"}


def maps(store):
    return sorted(path.name for path in store.cache_dir.iterdir())
