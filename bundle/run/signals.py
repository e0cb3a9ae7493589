"""Handles signals that ask a process to end: it notes the first and leaves the second to the system."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from bundle.distributed.launcher import launched

# A scheduler's, Ctrl-C, and a terminal that was closed.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PASSED_ON_S = 10.0  # within which the same signal may come again through a launcher


class StopRequested(BaseException):
    """Ends a process where it is; no `Exception`, so that nothing on its way takes it for a failure.

    Args:
        number: of the signal.
    """

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"stopped by {number.name}; the files written so far are complete")
        self.number = number


class StopSignals:
    """Takes SIGTERM, Ctrl-C and SIGHUP over until `give_back`; a second signal ends the process at once.

    A scheduler sends a signal to all processes, and a launcher passes the same signal on half a second later.
    So in a process that a launcher started, a second signal counts only after some seconds.

    A signal that this process was started to ignore stays ignored, as under `nohup` and in the background of
    a script. Only the main thread can do this; elsewhere it does nothing.

    Args:
        react: called with the first signal, between any two steps of the main thread.

    Attributes:
        received: the first signal; None so far.
    """

    def __init__(self, react: Callable[[signal.Signals], None] | None = None) -> None:
        self.received: signal.Signals | None = None
        self._react = react
        self._process = os.getpid()
        self._received_at = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        self.listen()
        return self

    def __exit__(self, *error: object) -> None:
        self.give_back()

    def listen(self) -> None:
        """Takes the signals over."""
        if threading.current_thread() is threading.main_thread() and not self._before:
            self._process = os.getpid()
            for number in STOP_SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._receive)

    def give_back(self) -> None:
        """Restores what the signals did, for programs that live on, such as a server."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # this is a fork; its parent has got the signal too, or will end it
        if self.received is not None:
            self._end_by_second(number)
            return
        self.received, self._received_at = signal.Signals(number), time.monotonic()
        if launched().size == 1:
            for stop_signal in self._before:
                signal.signal(stop_signal, signal.SIG_DFL)
        if self._react is not None:
            self._react(self.received)

    def _end_by_second(self, number: int) -> None:
        if time.monotonic() - self._received_at >= PASSED_ON_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


def end_at_once(number: signal.Signals) -> None:
    """Raises StopRequested, for `StopSignals` of work that can be left anywhere."""
    raise StopRequested(number)


def ignore_stop_signals(worker_id: int = 0) -> None:
    """Leaves the signals to the main process; for `worker_init_fn` of a data loader.

    A terminal and a scheduler send them to all processes of a run, which would lose its readers first.

    Args:
        worker_id: number of the worker; not used.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_readers() -> None:
    """Kills the reading processes that an error has left behind.

    A run that ends well has ended its readers by then. Python would send SIGTERM to the others, which they
    ignore, and wait for them for ever. torch would report each of them as killed for lack of memory.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
