import numpy as np
import pytest

from bundle.data.phantom import write_phantom
from scripts import store_comparison
from scripts.store_comparison import OURS, compare_stores


@pytest.fixture
def volume(tmp_path):
    """Axes that run to the left, so that the store turns them."""
    path = tmp_path / "ct.nii.gz"
    write_phantom(path, (70, 40, 36), np.diag([-1.0, 1.0, 2.0, 1.0]), seed=0)
    return path


def test_every_format_has_a_row_of_the_same_voxels(volume):
    rows = {row["format"]: row for row in compare_stores(volume, patch_size=16, n_patches=2)}

    assert {OURS, "blosc2 (b2nd)", ".nii, memory-mapped"} <= set(rows)
    assert rows[".nii, memory-mapped"]["size against raw int16"] == pytest.approx(1, abs=0.01)  # and a header
    assert all(row["16^3 patches per second, warm"] > 0 and row["cold"] > 0 for row in rows.values())


def test_a_format_that_gives_other_voxels_is_told(volume, monkeypatch):
    monkeypatch.setattr(store_comparison, "_nifti", lambda voxels, path: lambda place: voxels[place] + 1)

    with pytest.raises(RuntimeError, match=r"\.nii, memory-mapped: gives other voxels"):
        compare_stores(volume, patch_size=16, n_patches=2)
