"""The checkpoint format: one dictionary of tensors and plain numbers, written whole or not at all.

`model` holds the generator's state dict, which is what every MONAI consumer looks for; `network` says which
generator and HU window it belongs to; a training checkpoint holds discriminators, optimizers, schedules,
counters and random states besides.

Since format 2 the comment at the end of torch's zip archive holds a SHA-256 of all bytes before it: torch
loads a flipped bit of a weight without a word, archive checksums notwithstanding. Format 1, without one, is
still read.
"""

import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

FORMAT_VERSION = 2
CHECKSUM_SINCE = 2
CHECKSUM_MARK = b"ctpa_vqgan sha256 "
CHECKSUM_BYTES = len(CHECKSUM_MARK) + 64
NETWORK_SETTINGS = ("preset", "quantizer", "num_embeddings", "hu_min", "hu_max")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message begins with its file name and says what to do."""


class CheckpointWriteError(OSError):
    """A checkpoint that cannot be written, as on a full disk; what was written before is whole."""


def network_settings(
    preset: str, quantizer: str, num_embeddings: int, hu_min: float, hu_max: float
) -> dict[str, Any]:
    """What a checkpoint says of its generator, as plain values."""
    return {
        "preset": str(preset),
        "quantizer": str(quantizer),
        "num_embeddings": int(num_embeddings),
        "hu_min": float(hu_min),
        "hu_max": float(hu_max),
    }


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Writes to a temporary file in the same folder, flushes it to disk and renames it over `path`.

    Raises:
        CheckpointWriteError: if there is no room or no permission; what `path` held before is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w+b") as file:
            torch.save({"format_version": FORMAT_VERSION, **content}, file)
            _append_checksum(file)
            file.flush()
            os.fsync(file.fileno())
        rename(temporary, path)
    except (OSError, RuntimeError) as error:
        # torch turns a failed write into an error of its own, with the reason behind it
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        raise CheckpointWriteError(
            f"{path}: cannot be written ({reason.strerror}); checkpoints written before are whole: make room "
            "and go on with --resume_from_checkpoint auto"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def rename(source: Path, target: Path) -> None:
    """Renames a file within its folder for good: a power cut does not undo it."""
    os.replace(source, target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint of this project; nothing in it is ever run.

    Raises:
        CheckpointError: if the file is missing, damaged, foreign, or of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such checkpoint; train one (configs/train.yaml) or install one with "
            "`python -m scripts.install CHECKPOINT`, or name another file"
        )
    has_checksum = _check_checksum(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of foreign bytes the unpickler raises whatever it stumbles over
        raise CheckpointError(f"{path}: {_why_unreadable(path, error)}") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: written in format {version}, this version reads up to {FORMAT_VERSION}; "
            "update this project"
        )
    if not _is_ours(content):
        raise CheckpointError(f"{path}: {_why_foreign(content)}")
    if not has_checksum and version is not None and version >= CHECKSUM_SINCE:
        raise CheckpointError(f"{path}: {_unreadable('its checksum is missing')}")
    return content


def check_network(path: str | Path, content: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuses a checkpoint of another generator or HU window than the config's, naming the override.

    Raises:
        CheckpointError: listing every setting that differs.
    """
    found = content["network"]
    different = [name for name in NETWORK_SETTINGS if found.get(name) != expected[name]]
    if different:
        told = ", ".join(f"`{name}` {found.get(name)!r} (here {expected[name]!r})" for name in different)
        advice = " ".join(f"--{name} {found.get(name)}" for name in different)
        raise CheckpointError(f"{path}: was trained with {told}; use it with {advice}")


def load_generator(network: torch.nn.Module, path: str | Path, content: Mapping[str, Any]) -> int:
    """Loads `model` strictly into the generator; returns how many tensors matched.

    Raises:
        CheckpointError: if a tensor is missing, left over or of another shape.
    """
    try:
        network.load_state_dict(content["model"])
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its weights do not fit this generator: {error}") from error
    return len(content["model"])


def _append_checksum(file: io.BufferedRandom) -> None:
    """Turns the archive's comment, whose length is the last thing in a zip file, into the checksum."""
    file.seek(-2, io.SEEK_END)
    file.write(CHECKSUM_BYTES.to_bytes(2, "little") + CHECKSUM_MARK)
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0, io.SEEK_END)
    file.write(digest.encode())


def _check_checksum(path: Path) -> bool:
    """Compares the file with its checksum, in pieces; returns whether it has one."""
    left = path.stat().st_size - 64
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(max(left - len(CHECKSUM_MARK), 0))
        if file.read(len(CHECKSUM_MARK)) != CHECKSUM_MARK:
            return False
        expected = file.read()
        file.seek(0)
        while piece := file.read(min(left, 1 << 20)):
            digest.update(piece)
            left -= len(piece)
    if digest.hexdigest().encode() != expected:
        raise CheckpointError(f"{path}: {_unreadable('its content does not fit its checksum')}")
    return True


def _is_ours(content: Any) -> bool:
    if not isinstance(content, dict) or "model" not in content:
        return False
    network = content.get("network")
    return isinstance(network, dict) and not network.keys().isdisjoint(NETWORK_SETTINGS)


def _why_unreadable(path: Path, error: Exception) -> str:
    if path.suffix == ".ckpt" or "pytorch_lightning" in str(error) or "omegaconf" in str(error):
        return (
            "not a checkpoint of this project. A Lightning .ckpt of another VQ-GAN holds another network and "
            "cannot be loaded; train a new one with configs/train.yaml"
        )
    return _unreadable(type(error).__name__)


def _unreadable(reason: str) -> str:
    return f"not a readable checkpoint (truncated, damaged or foreign: {reason}); use another file"


def _why_foreign(content: Any) -> str:
    if isinstance(content, dict) and ("pytorch-lightning_version" in content or "state_dict" in content):
        return (
            "a Lightning checkpoint of another network, which cannot be loaded into this one; "
            "train a new one with configs/train.yaml"
        )
    return (
        "not a checkpoint of this project: it lacks `model` or `network`; use a file that this project wrote"
    )
