"""Keeps the record of a run: `start_run` comes before anything is written, `finish_run` last."""

from __future__ import annotations

import atexit
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from bundle.distributed.collectives import FirstRankError, gather, on_first_rank
from bundle.distributed.ranks import is_first, leave, rank, wait_for_ranks
from bundle.run.atomic import UnwritableError, write_text
from bundle.run.console import as_message, open_log, tell, tidy_console
from bundle.run.description import describe_start, now, plain
from bundle.run.errors import chain_of, is_rank_lost, own_message, short_message
from bundle.run.files import open_regular
from bundle.run.lock import FolderInUseError, lock_folder, release_folder
from bundle.run.names import of_part
from bundle.run.signals import StopRequested, StopSignals, end_at_once, end_readers

logger = logging.getLogger(__name__)

_RECORD = "run.json"


class OutputFolderError(FileExistsError):
    """An output folder that already holds another run's checkpoints."""


@dataclass
class _OpenRun:
    """A run between `start_run` and `finish_run`."""

    folder: Path
    record: Path
    log: logging.Handler
    signals: StopSignals
    part: str


_open_runs: dict[Path, _OpenRun] = {}
_followed: set[Path] = set()  # folders of runs whose record another rank keeps


def lock_run(output_dir: str) -> None:
    """Claims the folder of a run that exists, before anything in it is read.

    Without this, a run that is about to end could write checkpoints after this one has read the newest.

    Raises:
        FolderInUseError: if another process trains there.
    """
    folder = Path(output_dir)
    on_first_rank(lambda: lock_folder(folder) if (folder / _RECORD).is_file() else None)


def start_run(
    output_dir: str,
    log_file: str = "training.log",
    seed: int | None = None,
    device: Any = None,
    resuming: bool = False,
    settings: Mapping[str, Any] | None = None,
    shared: bool = False,
    network: Mapping[str, Any] | None = None,
    part: str = "",
) -> None:
    """Opens the output folder: creates it, locks it, starts the log file and writes `run.json`.

    The log is added to what an earlier run has left. Until `finish_run`, SIGTERM, Ctrl-C and SIGHUP raise
    `StopRequested`, which ends up in the record too. Of processes that were started together only rank 0 does
    this, unless they have parts of their own.

    Args:
        output_dir: folder of this run; created with its parents.
        log_file: name of the log file in it; holds what the root logger passes on.
        seed: recorded.
        device: recorded.
        resuming: the run continues the one that this folder holds; its earlier starts are kept.
        settings: recorded as the config where there is no command line to rebuild it from (MONAI Label).
        shared: whether other processes may write results there at the same time. The second process then
            gets a record and a log of its own, with its process number in their names.
        network: recorded: preset, quantizer, number of codes and HU window as they are used, also where the
            config leaves them to a checkpoint or an expression.
        part: share of the work that is this process's alone, such as `shard_3_of_8`; its record, log and lock
            carry that name, and processes with other parts may work in the folder too.

    Raises:
        OutputFolderError: if `output_dir` holds checkpoints and `resuming` is false.
        FolderInUseError: if another process works there and `shared` is false.
        UnwritableError: if the folder or a file in it cannot be written.
    """
    folder = Path(output_dir)
    if not resuming and any(folder.glob("checkpoints/[!.]*.pt")):
        raise OutputFolderError(
            f"{folder}: holds the checkpoints of another run; give another --output_dir, or continue that "
            "run with --resume_from_checkpoint auto"
        )
    start = describe_start(settings) | {"seed": seed, "device": device}
    if network is not None:
        start["network"] = dict(network)
    opened = partial(_open_run, folder, log_file, start, resuming, shared, part)
    if part:
        opened()
        return
    on_first_rank(opened)
    if not is_first():
        _followed.add(folder)


def _open_run(
    folder: Path, log_file: str, start: dict[str, Any], resuming: bool, shared: bool, part: str
) -> None:
    for unfinished in list(_open_runs):  # one that failed in a program that lives on
        _close_run(unfinished)
    name = part
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock_folder(folder, part)
    except FolderInUseError:
        if part or not shared:
            raise
        name = str(os.getpid())
    except OSError as error:
        raise UnwritableError(folder, error) from error
    log, record = (of_part(folder / file, name) for file in (log_file, _RECORD))
    run = _OpenRun(folder, record, open_log(log), StopSignals(end_at_once), part)
    _open_runs[folder.resolve()] = run
    earlier = _read_record(record) if resuming else {}
    starts = earlier.pop("earlier_starts", []) + ([earlier] if earlier else [])
    _write_record(record, start | {"earlier_starts": starts})
    tidy_console()
    atexit.unregister(end_readers)
    atexit.register(end_readers)
    run.signals.listen()


def finish_run(
    output_dir: str, figures: Mapping[str, Any] | None = None, stopped_by: int | None = None
) -> None:
    """Marks the run in `output_dir` as finished, adds its final figures, closes its log and gives it up.

    Ranks leave together: a launcher would end the others when the first has gone.

    Args:
        output_dir: the folder that was given to `start_run`.
        figures: e.g. `{"val/psnr": 28.4}`; numbers, strings, lists and mappings of them.
        stopped_by: number of the signal that ended the run early, known to one rank at least; None = it is
            finished.

    Raises:
        SystemExit: 128 + the signal's number, as shells and schedulers know a stopped run.
    """
    stopped_by = max(gather(stopped_by or 0)) or None
    if _keeps_record(Path(output_dir)):
        status = "finished" if stopped_by is None else "stopped"
        _end_run(Path(output_dir), {"status": status, "figures": figures or {}})
    _followed.discard(Path(output_dir))
    wait_for_ranks()
    leave()
    if stopped_by is not None:
        sys.exit(128 + stopped_by)


def note_event(kind: str, **details: Any) -> None:
    """Adds an event to `events` in the `run.json` of the run that `start_run` has opened in this process.

    Where no run is open, nothing is written.

    Args:
        kind: e.g. `rollback`.
        details: numbers, strings and lists of them.
    """
    for run in _open_runs.values():
        record = _read_record(run.record)
        record["events"] = [*record.get("events", []), {"time": now(), "kind": kind, **details}]
        _write_record(run.record, record)


def report_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ends a failed or stopped process with one clear line, as `sys.excepthook`.

    MONAI wraps what a component raises in RuntimeErrors. An error class of this project is reported by its
    message alone; any other error keeps its traceback, and its message is repeated in the last line. The open
    log file and `run.json` of the run get the error too, also that of a rank above 0. A rank that ends
    because rank 0 could not go on says nothing.

    Raises:
        SystemExit: 128 + the signal's number if a signal has ended the process.
    """
    if any(isinstance(link, FirstRankError) for link in chain_of(error)):
        raise SystemExit(1)
    message, is_unread = own_message(error), _has_lost_its_reader(error)
    if message is None and not is_unread:
        tell("".join(traceback.format_exception(kind, error, trace)).rstrip(), file=sys.stderr)
    message = as_message(message or short_message(error))
    message = f"rank {rank()}: {message}" if rank() > 0 else _told_by_another_rank(error) or message
    status = "stopped" if isinstance(error, StopRequested | KeyboardInterrupt) else "failed"
    for run in list(_open_runs.values()):
        details = (kind, error, trace)
        run.log.handle(logging.LogRecord(__name__, logging.ERROR, __file__, 0, message, None, details))
        with suppress(OSError):  # a disk that is full may be what the message is about
            _end_run(run.folder, {"status": status, "error": message})
    _note_for_first_rank(error, {"status": status, "error": message})
    if is_unread:
        raise SystemExit(128 + signal.SIGPIPE)
    tell(f"error: {message}", file=sys.stderr)
    if isinstance(error, StopRequested):
        raise SystemExit(128 + error.number)


def _told_by_another_rank(error: BaseException) -> str | None:
    """Returns the error of another rank that has ended, if that is why this one cannot go on."""
    if not any(is_rank_lost(link) for link in chain_of(error)):
        return None
    told = (_read_record(run.record).get("error") for run in _open_runs.values())
    return next((text for text in told if isinstance(text, str)), None)


def _note_for_first_rank(error: BaseException, ending: Mapping[str, Any]) -> None:
    """Writes the error of this rank into the record; rank 0 may be waiting and unable to do so."""
    for folder in () if any(is_rank_lost(link) for link in chain_of(error)) else _followed:
        record = _read_record(folder / _RECORD)
        if record.get("status") == "running":
            with suppress(OSError):
                _write_record(folder / _RECORD, {**record, **ending, "end_time": now()})


def run_script(main: Callable[[], object]) -> None:
    """Ends this process with the exit code of a script's `main`; errors end in one line.

    Args:
        main: returns the exit code; anything but a number counts as 0.
    """
    sys.excepthook = report_error
    tidy_console()
    code = main()
    sys.stdout.flush()  # here and not at the end of Python, which would print a traceback of its own
    sys.exit(code if isinstance(code, int) else 0)


def _has_lost_its_reader(error: BaseException) -> bool:
    """Tells whether output went to a program that has ended, like `| head`; then drops the rest."""
    if not isinstance(error, BrokenPipeError):
        return False
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return True
    return False


def _keeps_record(folder: Path) -> bool:
    """Tells whether this process writes a record in the folder: rank 0, or one with its own part."""
    return is_first() or folder.resolve() in _open_runs


def _record_of(folder: Path) -> Path:
    run = _open_runs.get(folder.resolve())
    return run.record if run else folder / _RECORD


def _read_record(path: Path) -> dict[str, Any]:
    try:
        with open_regular(path) as file:
            return dict(json.loads(file.read()))
    except (OSError, ValueError, TypeError):  # none, or not ours
        return {}


def _write_record(path: Path, record: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(plain(record), indent=2) + "\n")


def _end_run(folder: Path, ending: Mapping[str, Any]) -> None:
    path = _record_of(folder)
    try:
        _write_record(path, {**_read_record(path), **ending, "end_time": now()})
    finally:
        _close_run(folder)


def _close_run(folder: Path) -> None:
    """Closes the log, gives the signals back, and releases the folder if it was this process's alone."""
    run = _open_runs.pop(folder.resolve(), None)
    if run is not None:
        run.signals.give_back()
        logging.getLogger().removeHandler(run.log)
        run.log.close()
        release_folder(folder, run.part)
