"""Guards the start of a run and keeps its record.

MONAI takes any `--id value` in silence, also one that no config knows, and trains with the old value. The
first entry of every `run:` list is therefore `refuse_unknown_overrides`, the second `start_run`, the last
`finish_run`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

from bundle.run.command import BUNDLE_ROOT, check_overrides, current_command
from bundle.run.errors import own_message, short_message

_PACKAGES = ("torch", "monai", "pytorch-ignite", "numpy", "nibabel")
_RUN_LOG = "ctpa_vqgan run log"
_SECRET = re.compile(r"password|passwd|secret|token|api_?key|credential", re.IGNORECASE)
_USER_IN_ADDRESS = re.compile(r"://[^/@\s]+@")


class OutputFolderError(FileExistsError):
    """An output folder that already holds another run's checkpoints."""


def refuse_unknown_overrides() -> None:
    """Ends the run if the command line overrides an id that no listed config file has.

    Does nothing where there is no command line (MONAI Label, `ConfigWorkflow`). From here on an error of this
    project ends the process with one line instead of a traceback.

    Raises:
        UnknownOverrideError: naming each unknown id with the nearest known ones.
    """
    command = current_command()
    if command is not None:
        sys.excepthook = report_error
        check_overrides(command)


def start_run(
    output_dir: str,
    log_file: str = "training.log",
    seed: int | None = None,
    device: Any = None,
    resuming: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Opens the output folder: creates it, starts the log file and writes `run.json`.

    Processes other than rank 0 of a distributed run only check the folder.

    Args:
        output_dir: folder of this run; created with its parents.
        log_file: name of the log file in it; holds what the root logger passes on.
        seed: recorded.
        device: recorded.
        resuming: the run continues the one that this folder holds; its log and its earlier starts are kept.
        settings: recorded as the config where there is no command line to rebuild it from (MONAI Label).

    Raises:
        OutputFolderError: if `output_dir` holds checkpoints and `resuming` is false.
    """
    folder = Path(output_dir)
    if not resuming and any(folder.glob("checkpoints/*.pt")):
        raise OutputFolderError(
            f"{folder}: holds the checkpoints of another run; give another --output_dir, or continue that "
            "run with --resume_from_checkpoint auto"
        )
    if _is_secondary_process():
        return
    folder.mkdir(parents=True, exist_ok=True)
    _open_log(folder / log_file, keep=resuming)
    earlier = _read_record(folder) if resuming else {}
    starts = earlier.pop("earlier_starts", []) + ([earlier] if earlier else [])
    _write_record(
        folder, _describe_start(settings) | {"seed": seed, "device": device, "earlier_starts": starts}
    )


def finish_run(
    output_dir: str, figures: Mapping[str, Any] | None = None, stopped_by: int | None = None
) -> None:
    """Marks the run in `output_dir` as finished, adds its final figures and closes its log file.

    Args:
        output_dir: the folder that was given to `start_run`.
        figures: e.g. `{"val/psnr": 28.4}`; numbers, strings, lists and mappings of them.
        stopped_by: number of the signal that ended the run early; None = it is finished.

    Raises:
        SystemExit: 128 + the signal's number, as shells and schedulers know a stopped run.
    """
    if not _is_secondary_process():
        status = "finished" if stopped_by is None else "stopped"
        _end_run(Path(output_dir), {"status": status, "figures": figures or {}})
    if stopped_by is not None:
        sys.exit(128 + stopped_by)


def report_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ends a failed process with one clear line, as `sys.excepthook`.

    MONAI wraps what a component raises in RuntimeErrors. An error class of this project is reported by its
    message alone; any other error keeps its traceback, and its message is repeated in the last line. The open
    log file and `run.json` of the run get the error too.
    """
    message = own_message(error)
    if message is None:
        sys.__excepthook__(kind, error, trace)
        message = short_message(error)
    for handler in _run_logs():
        details = (kind, error, trace)
        handler.handle(logging.LogRecord(__name__, logging.ERROR, __file__, 0, message, None, details))
        with suppress(OSError):  # a disk that is full may be what the message is about
            _end_run(Path(handler.baseFilename).parent, {"status": "failed", "error": message})
    print(f"error: {message}", file=sys.stderr)


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file under a temporary name in its folder and renames it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _describe_start(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    command = current_command()
    config: Any = settings or {}
    if command is not None:
        parser = command.merged_config()
        for name, value in command.overrides.items():
            parser.set(value, name)
        config = {name: value for name, value in parser.get().items() if name != "_meta_"}
    return {
        "status": "running",
        "start_time": _now(),
        "command_line": _masked([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "config_files": command.config_files if command else [],
        "overrides": command.overrides if command else {},
        "config": config,
        "versions": {name: version(name) for name in _PACKAGES}
        | {"python": platform.python_version(), "ctpa_vqgan": _bundle_version()},
        "git_commit": _git_commit(),
        "figures": {},
    }


def _bundle_version() -> str:
    return json.loads((BUNDLE_ROOT / "metadata.json").read_text(encoding="utf-8"))["version"]


def _git_commit() -> str | None:
    """The checked-out commit, with `-dirty` behind it if tracked files differ from it; None outside git."""
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


def _plain(value: Any) -> Any:
    """`value` as JSON has it: numbers of other libraries as Python's, the non-finite and the rest as text."""
    if isinstance(value, Mapping):
        return {str(key): "***" if _SECRET.search(str(key)) else _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, int | float | None) else _USER_IN_ADDRESS.sub("://***@", str(value))


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write_record(folder: Path, record: Mapping[str, Any]) -> None:
    write_atomically(folder / "run.json", json.dumps(_plain(record), indent=2) + "\n")


def _end_run(folder: Path, ending: Mapping[str, Any]) -> None:
    _write_record(folder, {**_read_record(folder), **ending, "end_time": _now()})
    _close_logs()


def _run_logs() -> list[logging.FileHandler]:
    handlers = logging.getLogger().handlers
    return [h for h in handlers if isinstance(h, logging.FileHandler) and h.get_name() == _RUN_LOG]


def _open_log(path: Path, keep: bool) -> None:
    _close_logs()
    handler = logging.FileHandler(
        path, mode="a" if keep else "w", encoding="utf-8", errors="backslashreplace"
    )
    handler.set_name(_RUN_LOG)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)


def _close_logs() -> None:
    for handler in _run_logs():
        logging.getLogger().removeHandler(handler)
        handler.close()


def _is_secondary_process() -> bool:
    return int(os.environ.get("RANK", "0")) > 0


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
