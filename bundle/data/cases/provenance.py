"""Keeps how a result was made in a small JSON beside it; a later run sees whether to make it again."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bundle.run.atomic import UnwritableError, write_text
from bundle.run.files import open_regular

FORMAT_VERSION = 1
MAX_BYTES = 1 << 16


@dataclass(frozen=True)
class Provenance:
    """What determines the voxels or codes of a result: if it is equal, results of one volume are equal.

    The size of tiles is left out, since with a sufficient halo it does not change the result.

    Attributes:
        model_sha256: `bundle.networks.fingerprint` of the model.
        settings: `network_settings` of the model.
        amp: whether it computed in bf16.
        halo: voxels of context around a tile, if fewer than the network needs; else None.
    """

    model_sha256: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    amp: bool = False
    halo: int | None = None


def short_halo(halo: int | None, needed: int) -> int | None:
    """Returns a halo that is too small to be exact; None for all others, which give equal results."""
    return None if halo is None or halo >= needed else halo


def provenance_path(result: Path) -> Path:
    """Returns the JSON's path: `ct_recon.json` beside `ct_recon.nii.gz` or beside a folder `ct_recon`."""
    name = result.name.removesuffix(".gz").removesuffix(".nii")
    return result.with_name(f"{name}.json")


def write_provenance(result: Path, provenance: Provenance) -> None:
    """Notes how a complete result was made.

    Raises:
        UnwritableError: see `bundle.run.atomic.write_text`.
    """
    content = {"format_version": FORMAT_VERSION, "size": _size(result), **asdict(provenance)}
    write_text(provenance_path(result), json.dumps(content, indent=1) + "\n")


def forget_provenance(result: Path) -> None:
    """Removes the note before its result is replaced, since after a kill in between it would be wrong.

    Raises:
        UnwritableError: if that is not permitted.
    """
    path = provenance_path(result)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UnwritableError(path, error) from error


def read_provenance(result: Path) -> Provenance | None:
    """Reads how a result was made; None if there is no note, or if the note does not fit the result."""
    try:
        with open_regular(provenance_path(result)) as file:
            content = json.loads(file.read(MAX_BYTES))
        if (content.pop("format_version"), content.pop("size")) != (FORMAT_VERSION, _size(result)):
            return None
        return Provenance(**content)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _size(result: Path) -> int:
    """Returns the bytes of a file, or the number of files of a folder."""
    return len(os.listdir(result)) if result.is_dir() else result.stat().st_size
