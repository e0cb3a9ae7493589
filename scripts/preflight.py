"""Checks a training run before it starts: one line for each check, ok or what to do.

    python -m scripts.preflight --config_file configs/train.yaml --dataset_dir DIR

The arguments are those of `python -m monai.bundle run`. It checks the names of the overrides, every setting,
the data and their split, LPIPS weights (also whether they can be downloaded), the checkpoint to start from,
the output folder, free disk, precision, ranks and memory. It writes nothing and downloads nothing. The exit
code is 0 if the run can start, 1 if it cannot.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from bundle.checkpoints.start import StartFrom, continues_run
from bundle.data.store.store import PatchStore
from bundle.data.volumes.values import Judgement
from bundle.engines.preflight import Check
from bundle.engines.settings import check_training_settings, settings_of
from bundle.losses.perceptual import BackboneError, cached_backbone, reach_backbone
from bundle.run.command import (
    BUNDLE_ROOT,
    Command,
    ConfigFileError,
    UnknownOverrideError,
    check_overrides,
)
from bundle.run.console import MessageFormatter, tell
from bundle.run.errors import own_message, short_message
from bundle.run.names import counted
from bundle.run.record import run_script
from bundle.run.rules import RULES

START = "bundle.engines.preflight.require_start"
START_RUN = "bundle.run.record.start_run"  # the first step that writes
MEMORY = "bundle.engines.preflight.require_memory"
LPIPS_LOGGER = "bundle.losses.perceptual"
START_FROM = "bundle.checkpoints.start.StartFrom"


def main(arguments: Sequence[str]) -> int:
    """Prints the checks; returns the exit code."""
    if not arguments or {"-h", "--help"} & set(arguments):
        tell(__doc__)
        return 0
    to_terminal = logging.StreamHandler(sys.stdout)
    to_terminal.addFilter(pass_once())
    to_terminal.setFormatter(MessageFormatter())
    logging.getLogger().addHandler(to_terminal)
    levels = []
    try:
        for check in preflight(arguments):
            levels.append(check.level)
            tell(check, flush=True)
    finally:
        logging.getLogger().removeHandler(to_terminal)
    failed = "error" in levels
    tell("error: this run cannot start; see above" if failed else "this run can start")
    return int(failed)


def pass_once() -> Callable[[logging.LogRecord], bool]:
    """Returns a filter of messages: it drops repeated ones, and those about the random weights used here.

    Some parts are built several times, so their messages would be repeated.
    """
    told: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        is_known = record.getMessage() in told
        told.add(record.getMessage())
        return not is_known and record.name != LPIPS_LOGGER

    return is_new


def preflight(arguments: Sequence[str]) -> Iterator[Check]:
    """Yields all checks of a command line; later checks leave out parts that earlier ones found wrong."""
    try:
        command = Command(arguments)
        check_overrides(command)
        parser = command.applied_config()
    except (UnknownOverrideError, ConfigFileError) as error:
        yield Check("config", "error", str(error))
        return
    if START not in [entry_target(entry) for entry in parser.get("run", [])]:
        files = ", ".join(command.config_files)
        yield Check("config", "error", f"{files}: no training config; give configs/train.yaml")
        return
    checks = []
    yield Check("config", "ok", f"knows {counted(len(command.overrides), 'override')}")
    for found in checks_of(parser):
        checks.append(found)
        yield found
    if any(found.level == "error" for found in checks):
        return
    found = attempt("run", lambda: build_run(parser), "everything can be built as the run will build it")
    yield found
    if found.level == "ok":
        yield parsed_entry(parser, "run", MEMORY, as_target="bundle.engines.preflight.check_memory")


def checks_of(parser: ConfigParser) -> Iterator[Check]:
    """Checks the parts of the config in order; a broken part is replaced, so that the rest is checked too."""
    yield from check_settings(parser)
    data = attempt("data", lambda: parser.get_parsed_content("cases"), "found")
    if data.level == "error":
        yield data
        parser["cases"] = {"training": [], "validation": []}
    else:
        yield check_values(parser)
    yield check_perceptual(parser)
    yield check_folder(parser)
    yield check_start_from(parser)
    yield from check_built(parser, {"data"} if data.level == "error" else set())


def check_settings(parser: ConfigParser) -> Iterator[Check]:
    """Yields every setting that cannot work; later checks use the bundle's default instead."""
    stand_ins = ConfigParser.load_config_file(str(BUNDLE_ROOT / "configs" / "train.yaml"))
    replaced: set[str] = set()

    def replace(found: Check, names: Iterable[str]) -> Check:
        names = sorted(set(names) & stand_ins.keys() - replaced)
        replaced.update(names)
        for name in names:
            parser.set(stand_ins[name], name)
        told = ", ".join(f"{name} {stand_ins[name]}" for name in names)
        return found._replace(told=f"{found.told} (checks below take {told})") if names else found

    for name in (name for name in RULES if name in parser.get()):
        found = attempt("settings", partial(settings_of, parser, [name]), "")
        if found.level == "error":
            yield replace(found, [name])
    while True:
        found = attempt("settings", lambda: check_training_settings(settings_of(parser)), "can work together")
        named = set(re.findall("`(\\w+)`", found.told)) & stand_ins.keys() - replaced
        if found.level == "ok" or not named:
            break
        yield replace(found, named)
    if found.level == "error" or not replaced:
        yield found


def check_values(parser: ConfigParser) -> Check:
    """Tells whether the volumes hold HU, judged by a few slices of each; masks are an error."""
    judged: list[Judgement] = []

    def judge() -> None:
        cases = parser.get_parsed_content("cases")
        store = PatchStore(parser.get_parsed_content("cache_dir"))
        judged.append(store.judge([*cases["training"], *cases["validation"]]))

    outcome = attempt("values", judge, "look like HU")
    if not judged:
        return outcome
    masks, doubts = (list(dict.fromkeys(lines)) for lines in judged[0])
    told = "\n  ".join(
        [f"{counted(len(masks), 'mask')}, {counted(len(doubts), 'doubtful volume')}", *masks, *doubts]
    )
    return Check("values", "error" if masks else "warning", told) if masks or doubts else outcome


def check_perceptual(parser: ConfigParser) -> Check:
    """Tells whether the LPIPS backbone is there or can be downloaded; nothing is downloaded here."""
    names = ("perceptual_weight", "perceptual_weights_path", "perceptual_network")
    weight, path, network = (parser.get_parsed_content(name) for name in names)
    if weight == 0 and path is None:
        return Check("LPIPS", "ok", "not used")
    try:
        if str(path) == "random" or cached_backbone(network, path) is not None:
            return Check("LPIPS", "ok", "weights found")
        reach_backbone(network)
    except BackboneError as error:
        parser["perceptual_weight"], parser["perceptual_weights_path"] = 0, None
        return Check("LPIPS", "error", str(error))
    parser["perceptual_weights_path"] = "random"
    return Check("LPIPS", "ok", "weights are not here yet, but can be downloaded")


def check_folder(parser: ConfigParser) -> Check:
    """Tells whether the output folder holds another run."""
    folder = Path(parser.get_parsed_content("output_dir"))
    if continues_run(folder, parser["resume_from_checkpoint"]):
        return Check("folder", "ok", f"{folder} goes on with what it holds")
    if any(folder.glob("checkpoints/*.pt")):
        told = f"{folder}: holds the checkpoints of another run; give another --output_dir or resume that run"
        return Check("folder", "error", told)
    return Check("folder", "ok", f"{folder} holds no other run")


def check_start_from(parser: ConfigParser) -> Check:
    """Tells whether the checkpoint to start from is undamaged and fits."""
    found: list[StartFrom] = []
    outcome = attempt("start", lambda: found.append(parsed_entry(parser, "train::handlers", START_FROM)), "")
    if not found:
        return outcome
    return Check("start", "ok", f"from {found[0].path}" if found[0].path else "from random weights")


def check_built(parser: ConfigParser, done: set[str]) -> Iterator[Check]:
    """Yields the checks that every training run makes at its start, except those done already."""
    built: list[Check] = []

    def build() -> None:
        built.extend(parsed_entry(parser, "run", START, as_target="bundle.engines.preflight.check_start"))

    outcome = attempt("networks", build, "can be built")
    if outcome.level == "error":
        yield outcome
    yield from (check for check in built if check.name not in done)


def build_run(parser: ConfigParser) -> None:
    """Evaluates what the run evaluates before it writes: engines, handlers and tiling."""
    entries = parser.get("run")
    for position in range([entry_target(entry) for entry in entries].index(START_RUN)):
        if isinstance(entries[position], str):
            parser.get_parsed_content(f"run::{position}")


def parsed_entry(parser: ConfigParser, section: str, target: str, as_target: str | None = None) -> Any:
    """Builds or calls the entry of a list with this target, or another target with its arguments."""
    entries = parser.get(section)
    position = [entry_target(entry) for entry in entries].index(target)
    if as_target is not None:
        parser[f"{section}::{position}::_target_"] = as_target
    return parser.get_parsed_content(f"{section}::{position}")


def entry_target(entry: Any) -> str | None:
    """Returns the dotted path that an entry of a list calls."""
    return entry.get("_target_") if isinstance(entry, dict) else None


def attempt(name: str, call: Callable[[], Any], told: str) -> Check:
    """Tells whether a call succeeds; if not, its error is the answer."""
    try:
        call()
    except Exception as error:  # the user has to know any error that a component raises
        return Check(name, "error", own_message(error) or short_message(error))
    return Check(name, "ok", told)


if __name__ == "__main__":
    run_script(lambda: main(sys.argv[1:]))
