"""Works through many volumes in several processes, which end whenever and however this one ends."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from torch.utils.data import DataLoader, Dataset

from bundle.run.names import counted
from bundle.run.signals import StopSignals, ignore_stop_signals

Item = TypeVar("Item")
Result = TypeVar("Result")

_WORKER_DIED = "DataLoader worker (pid"  # torch has no error class for it


class ProcessError(RuntimeError):
    """A process that did not survive its volume."""


class StoppedError(RuntimeError):
    """A signal that ended the work early.

    Args:
        number: of the signal.
        n_left: number of volumes that were not begun.
    """

    def __init__(self, number: signal.Signals, n_left: int) -> None:
        super().__init__(
            f"stopped by {number.name} with {counted(n_left, 'volume')} left; run it again, it goes on"
        )
        self.number = int(number)


def run_tasks(work: Callable[[Item], Result], items: Sequence[Item], num_workers: int) -> Iterator[Result]:
    """Yields the results in the order in which they are ready.

    After a stop signal, running items are finished and no new ones begin. A second signal ends at once.

    Args:
        work: called with each item; must be picklable.
        items: must be picklable.
        num_workers: processes; 0 = in this one.

    Raises:
        StoppedError: if a signal came before the last item was begun.
        ProcessError: if a process was killed.
    """
    num_workers, n_done = min(num_workers, len(items)), 0
    with StopSignals() as stop:
        loader: DataLoader[Result] = DataLoader(
            _Work(work, items),
            batch_size=None,
            sampler=_UntilStopped(len(items), stop),
            num_workers=num_workers,
            collate_fn=_as_it_is,
            worker_init_fn=_start_worker if num_workers else None,
            # spawn, since a forked copy of a process with threads may hang for ever
            multiprocessing_context="spawn" if num_workers else None,
            prefetch_factor=1 if num_workers else None,
            in_order=not num_workers,
        )
        try:
            with _ctrl_c_blocked():
                results = iter(loader)
            for result in results:
                n_done += 1
                yield result
        except RuntimeError as error:
            if not str(error).startswith(_WORKER_DIED):
                raise
            if stop.received is None:
                raise ProcessError(
                    "a process was killed, usually out of memory; run it again with fewer --num_workers, "
                    "it goes on where it stopped"
                ) from error
    if stop.received is not None and n_done < len(items):
        raise StoppedError(stop.received, len(items) - n_done)


class _Work(Dataset, Generic[Item, Result]):
    """Items that are worked on where they are read."""

    def __init__(self, work: Callable[[Item], Result], items: Sequence[Item]) -> None:
        self.work, self.items = work, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Result:
        return self.work(self.items[number])


class _UntilStopped:
    """Numbers of the items, until a signal comes."""

    def __init__(self, n_items: int, stop: StopSignals) -> None:
        self.n_items, self.stop = n_items, stop

    def __len__(self) -> int:
        return self.n_items

    def __iter__(self) -> Iterator[int]:
        for number in range(self.n_items):
            if self.stop.received is not None:
                return
            yield number


def _as_it_is(result: Any) -> Any:
    return result


@contextmanager
def _ctrl_c_blocked() -> Iterator[None]:
    """Keeps Ctrl-C, which a terminal sends to all processes, away from processes started inside."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _start_worker(worker_id: int) -> None:
    ignore_stop_signals()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process together with its parent; torch checks for the parent only between two items."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
