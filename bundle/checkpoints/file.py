"""Reads and writes checkpoints: one dictionary of tensors and plain numbers, written whole or not at all.

`model` holds the generator's state dict, where every MONAI consumer looks for it. `network` says which
generator and HU window it belongs to, `trained_on` which patients and volumes it has seen, `recipe` how it
was trained. A training checkpoint also holds discriminators, optimizers, schedules, counters and random
states. An installed model may hold a `name`, and its weights in half precision; the generator still computes
in float32.

A file is a zip archive with a CRC for every part. torch does not compare the CRCs: it would load a weight
with a flipped bit without an error. So they are compared before torch opens the file.

Format 5 holds the present generator, which draws no grid of two or four voxels into its images.
Format 4 holds the same generator with other parameters, which are converted. Formats 1 to 3 hold the
generator of version 0.1.0. Its weights do not fit, so these formats are refused.
"""

import logging
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bundle.checkpoints import recipe, trained_on
from bundle.networks.decoder import SCALE
from bundle.run.atomic import UnwritableError, complete_or_absent
from bundle.run.names import printable, shown
from bundle.run.rules import NETWORK_SETTINGS, network_settings, settings_fault

__all__ = [
    "INSTALLED_MODEL",
    "NETWORK_SETTINGS",
    "CheckpointError",
    "CheckpointWriteError",
    "check_network",
    "load_generator",
    "network_settings",
    "read_checkpoint",
    "read_settings",
    "settings_in",
    "write_checkpoint",
]

logger = logging.getLogger(__name__)

FORMAT_VERSION = 5
OLDEST_FORMAT = 4
_UPSAMPLING_OF_FORMAT_4 = re.compile(r"(decoder\.blocks\.\d+\.0\.)weight")
INSTALLED_MODEL = Path(__file__).resolve().parents[2] / "models" / "model.pt"
"""The model that is used where no checkpoint is named: the one that ships, or one installed in its place."""
LONGEST_NAME = 120
WRITE_ADVICE = "earlier checkpoints are intact: make room and go on with --resume_from_checkpoint auto"
# Tensors in these parts must be finite; those of curves may be infinite.
WEIGHTS = ("model", "discriminators", "optimizers")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message begins with its file name and says what to do."""


class CheckpointWriteError(UnwritableError):
    """A checkpoint that cannot be written, for example on a full disk; earlier checkpoints are intact."""


def write_checkpoint(path: Path, content: Mapping[str, Any], advice: str = WRITE_ADVICE) -> None:
    """Writes the file whole or not at all; a power cut afterwards does not undo it.

    Args:
        path: the file; its folder is made if missing.
        content: tensors and plain numbers by name.
        advice: what the user can do if it cannot be written.

    Raises:
        CheckpointWriteError: if there is no room or no permission; what `path` held before is still there.
    """
    try:
        with complete_or_absent(path, advice, durable=True) as unfinished, unfinished.open("w+b") as file:
            torch.save({"format_version": FORMAT_VERSION, **content}, file)
    except (OSError, RuntimeError) as error:
        # torch turns a failed write into an error of its own, with the reason behind it
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        raise CheckpointWriteError(path, reason, advice) from error


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU and checks all that it holds; no code in it is ever run.

    Raises:
        CheckpointError: if the file is missing, damaged, foreign or of a newer format, or holds settings or
            tensors of a wrong type, or weights that are not finite.
    """
    path = Path(path)
    _require_file(path)
    _compare_checksums(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler may raise anything on foreign bytes
        raise CheckpointError(f"{shown_path(path)}: {_why_unreadable(path, error)}") from error
    fault = _fault(content)
    if fault is not None:
        raise CheckpointError(f"{shown_path(path)}: {fault}")
    return _of_this_format(content)


def read_settings(path: str | Path) -> dict[str, Any]:
    """Reads all `NETWORK_SETTINGS` of a checkpoint's generator, without its weights.

    Raises:
        CheckpointError: see `read_checkpoint`; or if a setting is missing.
    """
    path = Path(path)
    _require_file(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        fault = _fault_of_form(content)
    except Exception:  # reading the whole file says what is wrong
        content, fault = read_checkpoint(path), None
    if fault is not None:
        raise CheckpointError(f"{shown_path(path)}: {fault}")
    return settings_in(path, content)


def settings_in(path: str | Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all `NETWORK_SETTINGS` of a checkpoint that was read.

    Raises:
        CheckpointError: if a setting is missing.
    """
    missing = [name for name in NETWORK_SETTINGS if name not in content["network"]]
    if missing:
        raise CheckpointError(
            f"{shown_path(path)}: `network` must hold {', '.join(missing)}; use a checkpoint that training "
            "wrote"
        )
    return {name: content["network"][name] for name in NETWORK_SETTINGS}


def check_network(path: str | Path, content: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuses a checkpoint of another generator or HU window than the config's, naming the override.

    Raises:
        CheckpointError: listing every setting that differs.
    """
    found = content["network"]
    different = [name for name in NETWORK_SETTINGS if found.get(name) != expected[name]]
    if different:
        told = ", ".join(f"`{name}` {shown(found.get(name))} (here {expected[name]!r})" for name in different)
        # safe to copy: `settings_fault` lets plain words and numbers through, and nothing else
        advice = " ".join(f"--{name} {found.get(name)}" for name in different)
        raise CheckpointError(f"{shown_path(path)}: was trained with {told}; use it with {advice}")


def load_generator(network: torch.nn.Module, path: str | Path, content: Mapping[str, Any]) -> int:
    """Loads `model` strictly into the generator, logs its name, and returns how many tensors matched.

    Raises:
        CheckpointError: if a tensor is missing, left over or of another shape.
    """
    expected, given = network.state_dict(), content["model"]
    faults = {
        "missing": [name for name in expected if name not in given],
        "left over": [name for name in given if name not in expected],
        "of another shape": [
            name for name in expected if name in given and expected[name].shape != given[name].shape
        ],
    }
    told = [f"{len(names)} {what} ({_name(names[0])})" for what, names in faults.items() if names]
    if told:
        raise CheckpointError(
            f"{shown_path(path)}: its weights do not fit this generator: tensors {', '.join(told)}; use a "
            "checkpoint of this version's network"
        )
    network.load_state_dict(given)
    if "name" in content:
        logger.info("%s is %s", shown_path(path), printable(content["name"]))
    return len(given)


def shown_path(path: str | Path) -> str:
    """Returns a file's name without control characters, for a message."""
    return printable(str(path))


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(
            f"{shown_path(path)}: no such checkpoint; train one (configs/train.yaml) or install one with "
            "`python -m scripts.install CHECKPOINT`, or name another file"
        )


def _compare_checksums(path: Path) -> None:
    """Compares every part of the archive with its CRC."""
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [part for part in archive.infolist() if part.compress_type != zipfile.ZIP_STORED]
            damaged = archive.testzip() if not packed else packed[0].filename
    except Exception as error:  # zipfile raises many kinds, for damaged names too
        raise CheckpointError(f"{shown_path(path)}: {_why_unreadable(path, error)}") from error
    if damaged is not None:
        reason = f"its part {_name(damaged)} does not fit its checksum"
        raise CheckpointError(f"{shown_path(path)}: {_unreadable(reason)}")


def _fault(content: Any) -> str | None:
    """Says what is wrong with the content of a file; None if it can be used."""
    fault = _fault_of_form(content)
    if fault is not None:
        return fault
    for part in WEIGHTS:
        for name, tensor in _tensors(content.get(part, {}), part):
            fault = _fault_of_tensor(tensor)
            if fault is not None:
                return f"its tensor {_name(name)} {fault}; use another checkpoint"
    return None


def _fault_of_form(content: Any) -> str | None:
    """Says what is wrong with anything but the values of tensors."""
    version = content.get("format_version") if isinstance(content, dict) else None
    if type(version) is int and version > FORMAT_VERSION:
        return f"written in format {version}, this version reads up to {FORMAT_VERSION}; update this project"
    if not _is_ours(content):
        return _why_foreign(content)
    if version is not None and (type(version) is not int or version < 1):
        return f"`format_version` must be a whole number from 1, got {shown(version)}; use another checkpoint"
    if (version or 1) < OLDEST_FORMAT:
        return (
            f"holds the generator of version 0.1.0 (format {version or 1}), whose layers differ; use "
            "version 0.1.0 for it, or train a new one (docs/migration.md)"
        )
    return _fault_of_parts(content)


def _of_this_format(content: dict[str, Any]) -> dict[str, Any]:
    """Turns weights of format 4 into the parameters of `BlurredUpsample`; Adam's moments stay as they are."""
    if content["format_version"] == FORMAT_VERSION:
        return content
    model = {}
    for name, value in content["model"].items():
        found = _UPSAMPLING_OF_FORMAT_4.fullmatch(name)
        model[f"{found[1]}scaled_weight" if found else name] = value / SCALE if found else value
    return content | {"model": model, "format_version": FORMAT_VERSION}


def _fault_of_parts(content: Mapping[str, Any]) -> str | None:
    """Says what is wrong with the parts of a checkpoint of this format."""
    model = content["model"]
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in model.items()):
        return "`model` must hold tensors by name; use another checkpoint"
    fault = settings_fault(content["network"])
    if fault is not None:
        return f"{fault}; use another checkpoint"
    if not trained_on.is_sound(content.get("trained_on", {})):
        return "`trained_on` must hold lists of 16 hexadecimal digits; use another checkpoint"
    if not recipe.is_sound(content.get("recipe", {})):
        return "`recipe` must hold numbers by name, and `base` 64 hexadecimal digits; use another checkpoint"
    name = content.get("name", "")
    if not isinstance(name, str) or len(name) > LONGEST_NAME:
        return f"`name` must be text of up to {LONGEST_NAME} characters, got {shown(name)}; use another file"
    for part in ("discriminators", "optimizers", "schedules", "random", "extras", "figures"):
        if not isinstance(content.get(part, {}), dict):
            return f"`{part}` must hold values by name, got {shown(content[part])}; use another checkpoint"
    return _fault_of_training(content)


def _fault_of_training(content: Mapping[str, Any]) -> str | None:
    """Says what keeps a run from resuming a training checkpoint."""
    if "trainer" not in content:
        return None
    trainer = content["trainer"]
    if not isinstance(trainer, dict) or not (
        _is_count(trainer.get("iteration"), 0) and _is_count(trainer.get("epoch_length", 1), 1)
    ):
        return "`trainer` must hold whole numbers, among them `iteration`; use another checkpoint"
    share = trainer.get("learning_rate_share", 1.0)
    if type(share) not in (int, float) or not 0 < share <= 1:
        return (
            f"`learning_rate_share` must lie above 0 and up to 1, got {shown(share)}; use another checkpoint"
        )
    return None


def _is_count(value: Any, least: int) -> bool:
    return type(value) is int and value >= least


def _tensors(content: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Yields all tensors of a part with their names, however deep they lie."""
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _tensors(value, f"{name}.{key}")
    elif isinstance(content, list | tuple):
        for number, value in enumerate(content):
            yield from _tensors(value, f"{name}.{number}")


def _fault_of_tensor(tensor: Tensor) -> str | None:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
        return f"must hold real numbers, got {tensor.dtype} ({tensor.layout})"
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        return "must hold finite numbers, got NaN or infinite ones"
    return None


def _is_ours(content: Any) -> bool:
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
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


def _name(name: str) -> str:
    return shown(name).strip("'\"")


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
