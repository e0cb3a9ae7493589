"""Reads and writes checkpoint files: dictionaries of tensors and plain numbers, never code."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

NETWORK_KEYS = ("preset", "quantizer", "num_embeddings", "hu_min", "hu_max")
_LIGHTNING_KEY = "pytorch-lightning_version"


class CheckpointError(ValueError):
    """A file that cannot serve as a checkpoint; the message begins with its path."""


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a checkpoint of this project on the CPU, with `weights_only=True`: no code in it can run.

    Args:
        path: file with `model` (the generator's state dict) and `network` (what it was built with: preset,
            quantizer, num_embeddings, and its window hu_min, hu_max in HU).

    Returns:
        the whole dictionary.

    Raises:
        CheckpointError: missing, damaged or foreign file; a Lightning checkpoint is named as such.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such checkpoint; give a file that training wrote, e.g. .../last.pt"
        )
    if _is_lightning_file(path):
        raise CheckpointError(
            f"{path}: is a Lightning checkpoint of another network and cannot be loaded here; train a base model "
            "with configs/train.yaml"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(
            f"{path}: is damaged or not a checkpoint of tensors and plain numbers; give a file that training wrote"
        ) from error
    _require_our_keys(path, content)
    return content


def write_checkpoint(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Writes a checkpoint under a temporary name in its folder and renames it.

    Args:
        path: file to write or replace; its folder is created.
        content: tensors and plain numbers; `weights_only=True` refuses NumPy scalars and paths.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save(dict(content), temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _require_our_keys(path: Path, content: Any) -> None:
    keys = set(content) if isinstance(content, dict) else set()
    if not {"model", "network"} <= keys:
        raise CheckpointError(
            f"{path}: must hold `model` and `network`, got {sorted(map(str, keys))[:5] or type(content).__name__}; "
            "it is not a checkpoint of this project"
        )
    missing = [key for key in NETWORK_KEYS if key not in content["network"]]
    if missing:
        raise CheckpointError(
            f"{path}: `network` must say {', '.join(NETWORK_KEYS)}, got no {', '.join(missing)}"
        )


def _is_lightning_file(path: Path) -> bool:
    """Looks for Lightning's version entry in the pickled part, without unpickling it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
        return any(_LIGHTNING_KEY.encode() in archive.read(name) for name in pickles)
