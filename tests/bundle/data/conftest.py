import itertools
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest


@pytest.fixture
def save_nifti(tmp_path: Path) -> Callable[..., Path]:
    """Saves voxels as NIfTI under `tmp_path`, with an affine of 0.7 x 0.8 x 1.5 mm unless told otherwise."""
    numbers = itertools.count()

    def save(voxels: np.ndarray, affine: np.ndarray | None = None, name: str | None = None) -> Path:
        path = tmp_path / (name or f"volume_{next(numbers)}.nii.gz")
        path.parent.mkdir(parents=True, exist_ok=True)
        affine = np.diag([0.7, 0.8, 1.5, 1.0]) if affine is None else affine
        nib.save(nib.Nifti1Image(voxels, affine, dtype=voxels.dtype), path)
        return path

    return save
