"""Describes the start of a run for its record: command, config, versions, commit; secrets are masked."""

from __future__ import annotations

import json
import math
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bundle.run.command import BUNDLE_ROOT, current_command

_PACKAGES = ("torch", "monai", "pytorch-ignite", "numpy", "nibabel")
_SECRET = re.compile(r"password|passwd|secret|token|api_?key|credential", re.IGNORECASE)
_USER_IN_ADDRESS = re.compile(r"://[^/@\s]+@")


def describe_start(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns what `run.json` says of the start of a run.

    Args:
        settings: recorded as the config where there is no command line to rebuild it from (MONAI Label).
    """
    command = current_command()
    config: Any = settings or {}
    if command is not None:
        parser = command.merged_config()
        for name, value in command.overrides.items():
            parser.set(value, name)
        config = {name: value for name, value in parser.get().items() if name != "_meta_"}
    return {
        "status": "running",
        "start_time": now(),
        "command_line": _masked([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "config_files": command.config_files if command else [],
        "overrides": command.overrides if command else {},
        "config": config,
        "versions": {name: version(name) for name in _PACKAGES}
        | {"python": platform.python_version(), "ctpa_vqgan": _bundle_version()},
        "git_commit": _git_commit(),
        "figures": {},
    }


def plain(value: Any) -> Any:
    """Turns a value into what JSON holds; non-finite numbers and everything else become text."""
    if isinstance(value, Mapping):
        return {str(key): "***" if _SECRET.search(str(key)) else plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, int | float | None) else _USER_IN_ADDRESS.sub("://***@", str(value))


def now() -> str:
    """Returns the present time, with its zone, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _bundle_version() -> str:
    return json.loads((BUNDLE_ROOT / "metadata.json").read_text(encoding="utf-8"))["version"]


def _git_commit() -> str | None:
    """Returns the commit, with `-dirty` if tracked files differ from it; None outside git."""
    if not (BUNDLE_ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(BUNDLE_ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", check=True, timeout=30
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _masked(arguments: list[str]) -> list[str]:
    words: list[str] = []
    for word in arguments:
        name, equals, _ = word.partition("=")
        before = words[-1] if words else ""
        if before.startswith("-") and "=" not in before and _SECRET.search(before):
            word = "***"
        elif equals and _SECRET.search(name):
            word = f"{name}=***"
        words.append(_USER_IN_ADDRESS.sub("://***@", word))
    return words
