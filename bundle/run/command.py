"""Reads a command line of `monai.bundle run` and compares its overrides with the config files it lists."""

from __future__ import annotations

import ast
import contextlib
import copy
import difflib
import functools
import inspect
import io
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import fire
import monai.bundle
import yaml
from fire import decorators
from monai.bundle import DEFAULT_EXP_MGMT_SETTINGS, ConfigParser, ConfigWorkflow, ReferenceResolver
from monai.config import PathLike

from bundle.run.names import printable
from bundle.run.rules import PATHS, RULES

BUNDLE_ROOT = Path(__file__).resolve().parents[2]
# MONAI's own lists of steps: valid ids, but no user means them.
_NOT_FOR_USERS = ("initialize", "run", "finalize")
_OF_SETTING = re.compile(r"@(\w+)|\$@network_settings\['(\w+)'\]")


class UnknownOverrideError(ValueError):
    """An override on the command line that MONAI would ignore in silence."""


class ConfigFileError(FileNotFoundError):
    """A command line that lists no config file, or one that does not exist or cannot be read."""


class CommandLineError(ValueError):
    """A command line with a word that is neither an option nor its value."""


class _QuickParser(ConfigParser):
    """Parses a file once as long as it does not change; one command looks at its configs five times."""

    _parsed: ClassVar[dict[tuple[Path, int, int], Any]] = {}

    @classmethod
    def load_config_file(cls, filepath: PathLike, **kwargs: Any) -> Any:
        """Returns ids and values of a file, as MONAI reads them; the caller may change them."""
        stat = os.stat(filepath)
        key = (Path(filepath).absolute(), stat.st_mtime_ns, stat.st_size)
        if key not in cls._parsed:
            cls._parsed[key] = super().load_config_file(filepath, **kwargs)
        return copy.deepcopy(cls._parsed[key])


class Command:
    """A command line of `monai.bundle run`, read the way MONAI reads it, but for paths.

    To MONAI a folder `2024_01` is the number 202401, `a,b` is a list, and `data#1` is `data`. Here the value
    of an id that is a path is the text that was typed.

    Args:
        arguments: the words after `run`, e.g. `["--config_file", "configs/train.yaml", "--seed", "1"]`.

    Attributes:
        settings: arguments of `run` and overrides, those of `--args_file` included.
        args_file: the file that gave some of them.
        nothing: ids that were given as `None`, which MONAI drops.

    Raises:
        CommandLineError: if a word is neither an option nor its value.
        ConfigFileError: if `args_file` cannot be read.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        given: dict[str, Any] = {}

        @functools.wraps(monai.bundle.run)
        def capture(*args: Any, **kwargs: Any) -> None:
            given.update(inspect.signature(monai.bundle.run).bind(*args, **kwargs).arguments)

        # fire itself reads the words, with the signature of the real `run`: quoting, flags, `-` for `_`.
        decorators.SetParseFns(**dict.fromkeys(PATHS, _path_as_typed))(capture)
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                fire.Fire({"run": capture}, command=["run", *arguments])
        except fire.core.FireExit as end:
            reason = printable(str(end.trace.elements[-1].ErrorAsStr()))
            raise CommandLineError(
                f"the command line cannot be read ({reason}); write each setting as --id value"
            ) from end
        overrides = given.pop("override", {})
        self.nothing = [name for name, value in overrides.items() if value is None]
        args_file = given.pop("args_file", None)
        defaults = {} if args_file is None else read_config_file(str(args_file))
        self.settings = monai.bundle.update_kwargs(args=defaults, **given, **overrides)
        self.args_file = None if args_file is None else Path(args_file)

    @property
    def config_files(self) -> list[str]:
        """Returns the paths of the listed config files, in the order in which they are merged."""
        files = self.settings.get("config_file") or []
        return [str(file) for file in ([files] if isinstance(files, str) else files)]

    @property
    def overrides(self) -> dict[str, Any]:
        """Returns id and value of every override, without the arguments of `run` and of the workflow."""
        return {name: value for name, value in self.settings.items() if name not in _run_arguments()}

    def merged_config(self) -> ConfigParser:
        """Merges the listed files as MONAI does; overrides are not applied."""
        return merge_configs(self.config_files)

    def applied_config(self) -> ConfigParser:
        """Merges the listed files and applies the overrides."""
        parser = self.merged_config()
        for name, value in self.overrides.items():
            parser.set(path_for_monai(value) if name in PATHS and isinstance(value, str) else value, name)
        return parser


def merge_configs(files: Sequence[str]) -> ConfigParser:
    """Merges config files as MONAI does: a later file replaces ids of an earlier one or adds to them.

    Raises:
        ConfigFileError: if a file is missing or is not a map of ids and values.
    """
    parser = _QuickParser()
    try:
        parser.read_config(files)
    except (OSError, ValueError, AttributeError, RecursionError, yaml.YAMLError) as error:
        for file in files:  # people edit configs, and MONAI's error does not always name the file
            read_config_file(file)
        raise ConfigFileError(f"{', '.join(map(str, files))}: cannot be merged ({error})") from error
    return parser


def read_config_file(file: str) -> dict[str, Any]:
    """Reads ids and values of one file.

    Raises:
        ConfigFileError: if it is missing or is not a map of ids and values.
    """
    try:
        content = _QuickParser.load_config_file(file)
    except FileNotFoundError as error:
        raise ConfigFileError(
            f"{file}: no such config file; check `config_file`, or `args_file` if it was named there"
        ) from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigFileError(f"{file}: is not valid YAML or JSON ({reason}); correct it") from error
    if not isinstance(content, dict):
        raise ConfigFileError(f"{file}: must hold lines `id: value`, got {content!r:.60}; correct it")
    return content


def _path_as_typed(text: str) -> Any:
    """Returns a path as text without quotes; None, and true of an option without a value, stay."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if value is None or isinstance(value, bool | str) else text


def path_for_monai(path: str) -> str:
    """Returns a value that MONAI reads as this path; in plain text MONAI takes `#` for a separator."""
    if path.startswith(("$", "@", "%")) or "#" not in path:
        return path
    return plain_path_for_monai(path)


def plain_path_for_monai(path: str) -> str:
    """Does the same for a program that hands a path to MONAI: it is never an expression."""
    if not path.startswith("$") and not any(sign in path for sign in "#@%"):
        return path
    return "$" + repr(path).replace("#", r"\x23").replace("@", r"\x40").replace("%", r"\x25")


def _run_arguments() -> set[str]:
    callables = (monai.bundle.run, monai.bundle.create_workflow, ConfigWorkflow)
    names = {name for call in callables for name in inspect.signature(call).parameters}
    return names - {"override", "kwargs"}


def current_command() -> Command | None:
    """Returns this process's command line; None outside of `monai.bundle run` and `scripts.run`.

    MONAI Label and `ConfigWorkflow` in a test start a workflow without a command line.
    """
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    name = spec.name if spec else ""
    if name == "monai.bundle.__main__" and sys.argv[1:2] == ["run"]:
        return Command(sys.argv[2:])
    is_front_door = getattr(main, "__file__", None) == str(BUNDLE_ROOT / "scripts" / "run.py")
    return Command(sys.argv[1:]) if name == "scripts.run" or is_front_door else None


def arguments_from_anywhere(command: Command) -> list[str]:
    """Finds the bundle's own files for a command that was typed in another folder.

    Returns:
        arguments to add to the command line: config files that are not found in the working folder but below
        the bundle or beside the file of arguments that names them, and `bundle_root`; nothing in the bundle
        itself.

    Raises:
        ConfigFileError: if a config file is neither here nor below the bundle, or none is given.
    """
    if not command.config_files:
        raise ConfigFileError("`config_file` must be given, e.g. --config_file configs/train.yaml")
    folders = [Path(), BUNDLE_ROOT] + ([command.args_file.parent] if command.args_file else [])
    found = [_found_in(folders, file) for file in command.config_files]
    if Path.cwd().resolve() == BUNDLE_ROOT:
        return []
    added = [] if found == command.config_files else ["--config_file", repr(found)]
    has_root = "bundle_root" in command.overrides or "bundle_root" not in merge_configs(found)
    return added if has_root else [*added, "--bundle_root", str(BUNDLE_ROOT)]


def _found_in(folders: Sequence[Path], file: str) -> str:
    paths = [folder / file for folder in folders if (folder / file).is_file()]
    if not paths:
        places = f"neither here nor below {shlex.quote(str(BUNDLE_ROOT))}"
        raise ConfigFileError(f"{file}: no such config file, {places}; check `config_file`")
    return str(paths[0])


def check_overrides(command: Command) -> None:
    """Compares the overrides with the ids of the merged config.

    A nested id (`a::b` or `a#b`) must exist, or its parent must be a component (`_target_`) that it adds an
    argument to. The ids of an experiment tracker count as known if `--tracking` is given.

    A nested id that takes its value from a top-level id is refused too: other parts would keep the old value.

    Raises:
        UnknownOverrideError: naming each unknown id with the nearest known ones.
    """
    parser = command.merged_config()
    files = ", ".join(command.config_files)
    run_id = command.settings.get("run_id", "run")
    if run_id not in parser:
        raise UnknownOverrideError(f"{files}: holds no id `{run_id}` to run; leave that word out")
    known = [name for name in _ids(parser.get()) if name.split("::")[0] not in _NOT_FOR_USERS]
    tracking_ids = _tracking_ids(command.settings.get("tracking"))
    problems = []
    for name, value in command.overrides.items():
        problem = None if name in tracking_ids else _problem_of(name, value, parser, known)
        if problem is None:
            parser.set(value, name)
        else:
            problems.append(problem)
    for name in command.nothing:
        if not _is_known(name, parser):
            problems.append(_describe_unknown(name, known))
        elif parser[name] is not None:
            problems.append(f"`{name}` (MONAI drops `None`; write --{name} '$None')")
    if problems:
        raise UnknownOverrideError(f"override must name an id of {files}, got {'; '.join(problems)}")


def _problem_of(name: str, value: Any, parser: ConfigParser, known: Sequence[str]) -> str | None:
    """Says what is wrong with the name of an override; None if MONAI obeys it."""
    source = _top_level_source(name, parser)
    if source is not None:
        return f"`{name}` (is set by `{source}`; write --{source} {shlex.quote(str(value))})"
    return None if _is_known(name, parser) else _describe_unknown(name, known)


def _top_level_source(name: str, parser: ConfigParser) -> str | None:
    """Returns the setting that a nested id takes its value from, also by way of `network_settings`."""
    parent, _ = ReferenceResolver.split_id(name, last=True)
    value = parser.get(name) if parent else None
    found = _OF_SETTING.fullmatch(value) if isinstance(value, str) else None
    source = (found[1] or found[2]) if found else None
    return source if source in RULES else None


def _is_known(name: str, parser: ConfigParser) -> bool:
    parent, _ = ReferenceResolver.split_id(name, last=True)
    if name in parser or name == "_meta_" or parent.startswith("_meta_"):
        return True
    component = parser.get(parent) if parent else None
    return isinstance(component, dict) and "_target_" in component


def _ids(config: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(config, dict | list):
        for _, name, value in ReferenceResolver.iter_subconfigs(prefix, config):
            if not str(name).rsplit("::", 1)[-1].startswith("_"):
                yield name
            yield from _ids(value, name)


def _tracking_ids(tracking: Any) -> set[str]:
    if not tracking:
        return set()
    is_known = isinstance(tracking, str) and tracking in DEFAULT_EXP_MGMT_SETTINGS
    settings: dict = (
        DEFAULT_EXP_MGMT_SETTINGS[tracking] if is_known else ConfigParser.load_config_files(tracking)
    )
    return set(settings.get("configs", {}))


def _describe_unknown(name: str, known: Sequence[str]) -> str:
    name = ReferenceResolver.normalize_id(name)
    parent, leaf = ReferenceResolver.split_id(name, last=True)
    top_level = [other for other in known if "::" not in other]
    near = [other for other in top_level if leaf == "".join(word[:1] for word in other.split("_"))]
    near = (difflib.get_close_matches(name, known) if parent else []) + near
    near += difflib.get_close_matches(leaf, top_level)
    if not near:
        near = [other for other in known if other.endswith(f"::{leaf}")] or difflib.get_close_matches(
            name, known
        )
    names = " or ".join(f"`{other}`" for other in list(dict.fromkeys(near))[:3])
    return f"`{name}` ({f'did you mean {names}?' if names else 'nothing like it there'})"
