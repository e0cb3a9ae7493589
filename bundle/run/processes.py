"""Works through many volumes in several processes, which end with this one, whatever ends it."""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from types import FrameType
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
POLL_S = 0.2


class ProcessError(RuntimeError):
    """A process that did not survive its volume."""


class StoppedError(RuntimeError):
    """A signal that ended the work early.

    Args:
        number: of the signal.
        n_left: volumes that are left.
    """

    def __init__(self, number: signal.Signals, n_left: int) -> None:
        super().__init__(f"stopped by {number.name}, {n_left} volumes are left; run it again, it goes on")
        self.number = int(number)


def run_tasks(work: Callable[[Item], Result], items: Sequence[Item], num_workers: int) -> Iterator[Result]:
    """Gives the results in the order in which they come.

    SIGTERM or Ctrl-C lets the items at hand be finished and gives up the others; a second one ends at once.

    Args:
        work: what to do with an item; can be pickled.
        items: can be pickled.
        num_workers: processes; 0 = in this one.

    Raises:
        StoppedError: if a signal came before the last item was begun.
        ProcessError: if a process was killed.
    """
    with _Stop() as stop:
        if num_workers > 0:
            yield from _in_processes(work, items, max(1, min(num_workers, len(items))), stop)
            return
        for n_done, item in enumerate(items):
            if stop.received:
                raise StoppedError(stop.received, len(items) - n_done)
            yield work(item)


class _Stop:
    """Notes the first signal and leaves the second one to the system; works in the main thread alone."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "_Stop":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        for stop_signal in STOP_SIGNALS:
            signal.signal(stop_signal, signal.SIG_DFL)


def _in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], num_workers: int, stop: _Stop
) -> Iterator[Result]:
    # spawned: a fork of a process that has threads may stop for ever
    context = multiprocessing.get_context("spawn")
    workers = ProcessPoolExecutor(num_workers, context, _watch_parent)
    rest, n_done = iter(items), 0
    try:
        with _ctrl_c_blocked():
            pending = {workers.submit(work, item) for item in islice(rest, num_workers)}
        while pending:
            done, pending = wait(pending, POLL_S, FIRST_COMPLETED)
            if not stop.received:
                # no more than there are workers: a pool that breaks chokes on tasks that were given up
                pending |= {workers.submit(work, item) for item in islice(rest, len(done))}
            for task in done:
                yield task.result()
                n_done += 1
    except BrokenProcessPool as error:
        if stop.received is None:
            raise ProcessError(
                "a process was killed, most often for want of memory; run it again with fewer --num_workers, "
                "it goes on where it stopped"
            ) from error
    finally:
        workers.shutdown()
    if stop.received and n_done < len(items):
        raise StoppedError(stop.received, len(items) - n_done)


@contextmanager
def _ctrl_c_blocked() -> Iterator[None]:
    """A terminal sends Ctrl-C to all processes of a command; those that are started here never see it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _watch_parent() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Without it the workers of a process that was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
