"""Refuses names and values that cannot work, in one line; this is the first step of every workflow.

The rule of each single setting is in `bundle.run.rules`; rules across settings of a training run are here.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from monai.bundle import ConfigExpression, ConfigParser, ReferenceResolver

from bundle.distributed.launcher import idle_tasks_note, launched, refuse_misuse
from bundle.distributed.shares import batch_share
from bundle.networks.discriminators import MIN_PATCH_SIZE
from bundle.run.command import (
    BUNDLE_ROOT,
    Command,
    check_overrides,
    current_command,
    path_for_monai,
)
from bundle.run.console import tidy_console
from bundle.run.errors import short_message
from bundle.run.record import report_error
from bundle.run.rules import NETWORK_SETTINGS, PATHS, RULES, SWITCHES, SettingsError, check

logger = logging.getLogger(__name__)

ADVERSARIAL_MARK = "_with_disc"  # in the name of an output folder
JOIN = "join"  # the id under which a config says how the processes of a launcher work together


def check_settings(across: Callable[[Mapping[str, Any]], None] | None = None) -> None:
    """Ends the run if a name is unknown or a value cannot work; nothing has been built or written by then.

    It stands first in `initialize:`, so that no other step meets a wrong value. If plain MONAI is started in
    another folder, it finds the bundle's code only when it comes to `run:`, so it stands first there too.
    Names are checked where there is a command line, values wherever the config is evaluated (also by MONAI
    Label and `ConfigWorkflow`). From here on an error of this project ends a command with one line and no
    traceback. Then the processes of a launcher connect, as the config's `join` says; without `join`, several
    processes are refused.

    Args:
        across: called with the settings by name; refuses values that do not go together.

    Raises:
        UnknownOverrideError: naming each unknown id with the nearest known ones.
        SettingsError: naming the setting, its value, the rule and what to do.
        LaunchError: if processes were started together that do not work together.
    """
    command = current_command()
    if command is not None:
        sys.excepthook = report_error
        tidy_console()
        check_overrides(command)
    parser = _calling_parser(sys._getframe())
    if parser is None:
        return
    if command is not None:
        _take_paths_as_typed(parser, command)
        _take_switches_as_meant(parser)
    settings = settings_of(parser)
    if across is not None:
        across(settings)
    _join_processes(parser, command, settings.get("shard_count", 1) > 1)


def _join_processes(parser: ConfigParser, command: Command | None, has_shard: bool) -> None:
    joins, files = JOIN in parser.get(), command.config_files if command is not None else []
    refuse_misuse(joins or has_shard, _overlay_that_joins(files))
    note = idle_tasks_note(joins)
    if note and parser.get("trains_vqgan") is not True:  # there the preflight tells it
        logger.warning("%s", note)
    if joins:
        parser.get_parsed_content(JOIN)


def _overlay_that_joins(config_files: Iterable[str]) -> str | None:
    """Names the bundle's config that lets several processes share the work of these, if there is one."""
    names = [f"configs/multi_gpu_{Path(file).stem}.yaml" for file in config_files]
    return next((name for name in names if (BUNDLE_ROOT / name).is_file()), None)


def settings_of(parser: ConfigParser, names: Iterable[str] = RULES) -> dict[str, Any]:
    """Returns name and value of a config's settings, expressions evaluated.

    Raises:
        SettingsError: naming the setting, its value, the rule and what to do.
    """
    present = [name for name in names if name in parser.get()]
    settings: dict[str, Any] = {}
    # Expressions come last: they use other settings, and a wrong one of those must be named itself.
    for name in sorted(present, key=lambda name: ConfigExpression.is_expression(parser[name])):
        settings[name] = _evaluated(parser, name)
        check(**{name: settings[name]})
    check(**settings)
    return settings


def _evaluated(parser: ConfigParser, name: str) -> Any:
    try:
        return parser.get_parsed_content(name)
    except Exception as error:  # an expression may raise anything
        raise SettingsError(
            f"`{name}` must be {RULES[name].told}, got {parser[name]!r} which cannot be evaluated "
            f"({short_message(error)}); set e.g. --{name} {RULES[name].example}"
        ) from error


def _calling_parser(frame: FrameType | None) -> ConfigParser | None:
    """Finds the parser that evaluates the running step; MONAI offers no other way to the config."""
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, ConfigParser):
            return caller
        frame = frame.f_back
    return None


def _take_paths_as_typed(parser: ConfigParser, command: Command) -> None:
    """Gives back to MONAI's config the paths that MONAI has read as numbers, lists or ids."""
    merged = command.merged_config()
    typed = {name: command.overrides.get(name, merged.get(name)) for name in PATHS if name in parser.get()}
    for name, path in typed.items():
        if isinstance(path, str) and ReferenceResolver.normalize_id(path_for_monai(path)) != parser[name]:
            parser[name] = path_for_monai(path)


def _take_switches_as_meant(parser: ConfigParser) -> None:
    """Turns the words true and false of the command line into booleans, as YAML does.

    MONAI passes them on as text, and Python counts the text "false" as true: `--amp false` would switch
    nothing off.
    """
    for name in SWITCHES:
        value = parser[name] if name in parser.get() else None
        if isinstance(value, str) and value.lower() in ("true", "false"):
            parser[name] = value.lower() == "true"


def total_iterations(max_epochs: int, epoch_length: int, max_iterations: int | None) -> int:
    """Returns the iterations of the whole run."""
    total = max_epochs * epoch_length
    return total if max_iterations is None else min(total, max_iterations)


def check_training_settings(settings: Mapping[str, Any]) -> None:
    """Refuses settings that would fail together later, or would never have an effect.

    Args:
        settings: of configs/train.yaml by name, each of which keeps its own rule.

    Raises:
        SettingsError: naming the settings, their values, the rule and what to do.
    """
    for name in NETWORK_SETTINGS:
        _require(
            settings[name] is not None,
            f"`{name}` must be given for training, got null; set e.g. --{name} {RULES[name].example}",
        )
    adversarial = settings["image_gan_weight"] > 0 or settings["video_gan_weight"] > 0
    batch_share(settings["batch_size"], launched().size)
    _check_sampling(settings)
    _check_patch(settings, MIN_PATCH_SIZE if adversarial else 1)
    if adversarial or settings["perceptual_weight"] > 0:
        _check_gate(settings)
    _require(
        adversarial or ADVERSARIAL_MARK not in settings["output_dir"].rstrip("/").rpartition("/")[2],
        f"`output_dir` must name a run with discriminators if it says {ADVERSARIAL_MARK}, got "
        f"{settings['output_dir']} with `image_gan_weight` 0 and `video_gan_weight` 0; list "
        "configs/train_with_discriminator.yaml behind configs/train.yaml, or give another --output_dir",
    )


def _check_sampling(settings: Mapping[str, Any]) -> None:
    placed = settings["foreground_ratio"] + settings["vessel_ratio"]
    _require(
        placed <= 1,
        f"`foreground_ratio` + `vessel_ratio` must be at most 1, got {placed:g}; lower one",
    )
    patch_size = settings["patch_size"]
    _require(
        settings["turn_probability"] == 0 or patch_size[0] == patch_size[1],
        "`patch_size` must have two equal first sides for `turn_probability` above 0, "
        f"got {patch_size}; make them equal or set --turn_probability 0",
    )


def _check_patch(settings: Mapping[str, Any], smallest: int) -> None:
    patch_size, loss_margin = settings["patch_size"], settings["loss_margin"]
    _require(
        min(patch_size) >= smallest,
        f"`patch_size` must be at least {smallest} on each side for discriminators, got {patch_size}; "
        "set e.g. --patch_size [64,64,64]",
    )
    _require(
        loss_margin < min(patch_size) / 2,
        "`loss_margin` must be below half of the smallest patch side, "
        f"got {loss_margin} with {patch_size}; set e.g. --loss_margin 0",
    )


def _check_gate(settings: Mapping[str, Any]) -> None:
    total = total_iterations(settings["max_epochs"], settings["epoch_length"], settings["max_iterations"])
    opens = settings["discriminator_iter_start"] + settings["discriminator_pretrain_iters"]
    _require(
        opens < total,
        "`discriminator_iter_start` + `discriminator_pretrain_iters` must be below the run's "
        f"{total} iterations (`max_epochs` x `epoch_length`, at most `max_iterations`), got {opens}: the "
        "discriminators and LPIPS would never act on the generator; train longer or open the gate earlier",
    )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise SettingsError(message)
