"""Reads the curves and the small pictures that an evaluation keeps of each volume."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bundle.reports.clot_sheet import PATCH
from bundle.run.files import open_regular

FOLDER = "kept"
IS_STEM = re.compile("[A-Za-z0-9_-]+")
"""How the names of a volume's files begin in an output folder; nothing else may become a path."""
MAX_BYTES = 2**30
"""Far more than the largest volume needs; a damaged or forged file can claim anything."""
SHAPES: dict[str, tuple] = {
    "slice_rmse_hu": ("slices",),
    "frequency_per_mm": ("frequencies",),
    "noise_original": ("frequencies",),
    "noise_recon": ("frequencies",),
    "clot_site": ("emboli",),
    "clot_contrast": ("emboli",),
    "clot_original": ("emboli", PATCH, PATCH),
    "clot_recon": ("emboli", PATCH, PATCH),
}
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, MemoryError, NotImplementedError, zipfile.BadZipFile)


class KeptError(ValueError):
    """Curves or pictures of an evaluation that cannot be used; the message names the file."""


def read_kept(folder: Path, stem: str) -> Mapping[str, np.ndarray]:
    """Reads what an evaluation kept of one volume.

    Args:
        folder: output folder of configs/evaluate.yaml.
        stem: how the names of the volume's files begin.

    Returns:
        the arrays of `SHAPES` by name, or nothing where the evaluation kept none.

    Raises:
        KeptError: if the file is damaged, or no evaluation wrote it.
    """
    path = folder / FOLDER / f"{stem}.npz"
    if not IS_STEM.fullmatch(stem):
        raise KeptError(
            f"{folder}: `stem` must be letters, digits, - and _, got {stem!r:.100}; evaluate again"
        )
    try:
        with open_regular(path) as file:
            with zipfile.ZipFile(file) as archive:
                size = sum(part.file_size for part in archive.infolist())
                if size > MAX_BYTES:
                    raise ValueError(f"it would unpack to {size} bytes")
            file.seek(0)
            with np.load(file) as arrays:
                found = {name: _array(arrays, name) for name in SHAPES}
        _check(found)
    except FileNotFoundError:
        return {}
    except (*_UNREADABLE, zlib.error) as error:
        raise KeptError(f"{path}: cannot be read ({error!r:.200}); evaluate again") from error
    return found


def _array(arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """Returns an array; an empty one if an older version made the evaluation, without this array."""
    return arrays[name] if name in arrays else np.empty((0,) * len(SHAPES[name]))


def _check(found: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError if arrays do not fit each other; drawing them would fail far from their file."""
    lengths = {part: found[name].shape[:1] for name, (part, *_) in SHAPES.items()}
    for name, (part, *rest) in SHAPES.items():
        array = found[name]
        is_empty = array.size == 0 and lengths[part] == (0,)  # an evaluation without emboli keeps no pictures
        if array.dtype.kind not in "fiu" or not (is_empty or array.shape == (*lengths[part], *rest)):
            raise ValueError(f"`{name}` holds {array.dtype} {array.shape}")
