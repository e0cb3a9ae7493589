"""Checks a training run before it starts, and says in one line each what is well and what to do.

    python -m scripts.preflight --config_file configs/train.yaml --dataset_dir DIR

Arguments are those of `python -m monai.bundle run`. Looks at the names and types of the overrides, the
settings, the data and their split, LPIPS weights, the checkpoint to start from, output folder, free disk,
device, precision, ranks and memory; writes nothing and downloads nothing. Exit code 0 if the run can start, 1
if it cannot.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from bundle.command import Command, ConfigFileError, UnknownOverrideError, check_overrides
from bundle.engines.preflight import Check
from bundle.errors import own_message, short_message
from bundle.losses.perceptual import BackboneError, cached_backbone

SETTINGS = "bundle.engines.settings.check_training_settings"
START = "bundle.engines.preflight.require_start"
TABLE_LOGGER = "bundle.engines.preflight"  # tells the estimate of memory
START_FROM = "bundle.handlers.start_from.StartFrom"


def main(arguments: Sequence[str]) -> int:
    """Prints the checks; returns the exit code."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    table, to_terminal = logging.getLogger(TABLE_LOGGER), logging.StreamHandler(sys.stdout)
    table.setLevel(logging.INFO)
    table.addHandler(to_terminal)
    levels = []
    try:
        for check in preflight(arguments):
            levels.append(check.level)
            print(check, flush=True)
    finally:
        table.removeHandler(to_terminal)
    failed = "error" in levels
    print("error: this run cannot start; see above" if failed else "this run can start")
    return int(failed)


def preflight(arguments: Sequence[str]) -> Iterator[Check]:
    """All checks of a command line; later ones go on without the parts that earlier ones found broken."""
    try:
        command = Command(arguments)
        check_overrides(command)
        parser = command.merged_config()
    except (UnknownOverrideError, ConfigFileError) as error:
        yield Check("config", "error", str(error))
        return
    if START not in [entry_target(entry) for entry in parser.get("run", [])]:
        files = ", ".join(command.config_files)
        yield Check("config", "error", f"{files}: no training config; give configs/train.yaml")
        return
    yield from check_types(parser, command.overrides)
    for name, value in command.overrides.items():
        parser.set(value, name)
    yield attempt("settings", lambda: parsed_entry(parser, "run", SETTINGS), "can work together")
    data = attempt("data", lambda: parser.get_parsed_content("cases"), "found")
    if data.level == "error":
        yield data
        parser["cases"] = {"training": [], "validation": []}
    yield from check_perceptual(parser)
    yield check_folder(parser)
    yield attempt("start", lambda: parsed_entry(parser, "train::handlers", START_FROM), start_of(parser))
    yield from check_built(parser, skip_data=data.level == "error")


def check_types(parser: ConfigParser, overrides: dict[str, Any]) -> Iterator[Check]:
    """Whether overrides of plain values are of the kind of their defaults."""
    wrong = [
        f"`{name}` must be like {parser[name]!r}, got {value!r}"
        for name, value in overrides.items()
        if name in parser and not is_alike(parser[name], value)
    ]
    if wrong:
        yield Check("config", "error", "; ".join(wrong))
    else:
        yield Check("config", "ok", f"{len(overrides)} overrides are known and of the right kind")


def is_alike(default: Any, value: Any) -> bool:
    """Numbers for numbers, true or false for such, lists for lists; expressions and null can be anything."""
    is_expression = any(isinstance(each, str) and each.startswith(("$", "@")) for each in (default, value))
    if default is None or value is None or is_expression:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, int):
        return isinstance(value, int)
    if isinstance(default, float):
        return isinstance(value, int | float)
    if isinstance(default, str):
        return isinstance(value, str | int)
    return isinstance(value, type(default)) or (isinstance(default, list) and isinstance(value, tuple))


def check_perceptual(parser: ConfigParser) -> Iterator[Check]:
    """Whether the LPIPS backbone is there, or will have to be downloaded; nothing is downloaded here."""
    names = ("perceptual_weight", "perceptual_weights_path", "perceptual_network")
    weight, path, network = (parser.get_parsed_content(name) for name in names)
    if weight == 0 and path is None:
        yield Check("LPIPS", "ok", "not used")
        return
    check = Check("LPIPS", "ok", "weights found")
    try:
        if str(path) != "random" and cached_backbone(network, path) is None:
            told = "weights will be downloaded; without internet give --perceptual_weights_path FILE"
            check = Check("LPIPS", "warning", told)
    except BackboneError as error:
        check = Check("LPIPS", "error", str(error))
    if check.level != "ok":
        parser["perceptual_weights_path"] = "random"
    yield check


def check_folder(parser: ConfigParser) -> Check:
    """Whether the output folder holds another run."""
    folder = Path(parser.get_parsed_content("output_dir"))
    if parser["resume_from_checkpoint"] is None and any(folder.glob("checkpoints/*.pt")):
        told = f"{folder}: holds the checkpoints of another run; give another --output_dir or resume that run"
        return Check("folder", "error", told)
    return Check("folder", "ok", f"{folder} holds no other run")


def start_of(parser: ConfigParser) -> str:
    """What the run starts from."""
    path = parser["resume_from_checkpoint"] or parser["init_from"]
    return f"from {path}" if path else "from random weights"


def check_built(parser: ConfigParser, skip_data: bool) -> Iterator[Check]:
    """The checks that every training run makes at its start, and the estimate of memory."""
    built: list[Check] = []

    def build() -> None:
        built.extend(parsed_entry(parser, "run", START, as_target="bundle.engines.preflight.check_start"))

    outcome = attempt("networks", build, "can be built")
    if outcome.level == "error":
        yield outcome
    yield from (check for check in built if not (skip_data and check.name == "data"))


def parsed_entry(parser: ConfigParser, section: str, target: str, as_target: str | None = None) -> Any:
    """Builds or calls the entry of a list that has this target; perhaps under another one."""
    entries = parser.get(section)
    position = [entry_target(entry) for entry in entries].index(target)
    if as_target is not None:
        parser[f"{section}::{position}::_target_"] = as_target
    return parser.get_parsed_content(f"{section}::{position}")


def entry_target(entry: Any) -> str | None:
    """The dotted path that an entry of a list calls."""
    return entry.get("_target_") if isinstance(entry, dict) else None


def attempt(name: str, call: Callable[[], Any], told: str) -> Check:
    """Whether a call goes through; its error is the answer otherwise."""
    try:
        call()
    except Exception as error:  # whatever a config's component raises is what the user has to know
        return Check(name, "error", own_message(error) or short_message(error))
    return Check(name, "ok", told)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
