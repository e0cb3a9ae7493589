from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest


@pytest.fixture
def save_nifti(tmp_path: Path) -> Callable[..., Path]:
    """Saves voxels as NIfTI under `tmp_path/data`."""

    def save(voxels: np.ndarray, affine: np.ndarray | None = None, name: str = "scan.nii.gz") -> Path:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(voxels, np.diag([0.7, 0.8, 1.5, 1]) if affine is None else affine), path)
        return path

    return save
