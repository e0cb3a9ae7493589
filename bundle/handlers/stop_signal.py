"""Ends a run cleanly when a scheduler or a person asks for it."""

import atexit
import logging
import multiprocessing
import signal
import threading
from types import FrameType
from typing import Any

from ignite.engine import Engine, Events
from monai.engines import Trainer

from bundle.checkpoints.handler import CheckpointHandler
from bundle.handlers.curves import TensorBoardLog
from bundle.handlers.validation import ValidationStopped

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopOnSignal:
    """After SIGTERM or Ctrl-C finishes the iteration, writes `last.pt` and ends the run; a second one kills.

    A validation is not finished but left, since a whole volume may take longer than a scheduler waits: the
    run that goes on repeats it. Signals reach a program's main thread only; elsewhere this does nothing.

    Args:
        checkpoints: what writes `last.pt`.
        tensorboard: flushed at the end.
        validator: the validation engine, if there is one.

    Attributes:
        stopped_by: number of the signal that ended the run; None if it came to its own end.
    """

    def __init__(
        self, checkpoints: CheckpointHandler, tensorboard: TensorBoardLog, validator: Engine | None = None
    ) -> None:
        self.checkpoints = checkpoints
        self.tensorboard = tensorboard
        self.validator = validator
        self.stopped_by: int | None = None
        self._received: signal.Signals | None = None
        self._is_validating = False
        self._before: dict[signal.Signals, Any] = {}

    def attach(self, engine: Trainer) -> None:
        """Joins the trainer, and the validation engine if there is one; attach it before all others."""
        atexit.unregister(end_readers)
        atexit.register(end_readers)
        engine.add_event_handler(Events.STARTED, self.listen)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._end_run)
        engine.add_event_handler(Events.TERMINATE, self._save)
        if self.validator is not None:
            self.validator.add_event_handler(Events.STARTED, self._enter_validation)
            self.validator.add_event_handler(Events.COMPLETED, self._leave_validation)

    def listen(self) -> None:
        """Takes both signals over; from the first one on they do what the system does by default."""
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._before[number] = signal.signal(number, self._receive)

    def give_back(self) -> int | None:
        """Restores what both signals did before, for programs that live on, such as a server.

        Returns:
            `stopped_by`.
        """
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        return self.stopped_by

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = signal.Signals(number)
        for stop_signal in STOP_SIGNALS:
            signal.signal(stop_signal, signal.SIG_DFL)
        logger.warning("%s: saving, then ending; a second one ends at once", self._received.name)
        if self._is_validating:
            self._is_validating = False
            self.stopped_by = self._received
            raise ValidationStopped(f"{self._received.name} in a validation; the run that goes on repeats it")

    def _enter_validation(self) -> None:
        self._is_validating = True

    def _leave_validation(self) -> None:
        self._is_validating = False

    def _end_run(self, engine: Trainer) -> None:
        if self._received is not None:
            self.stopped_by = self._received
            engine.terminate(skip_completed=True)

    def _save(self, engine: Trainer) -> None:
        if self.stopped_by is not None:
            self.checkpoints.save_last(engine)
            self.tensorboard.close()
            logger.info(
                "Stopped at iteration %d; go on with --resume_from_checkpoint auto", engine.state.iteration
            )


def ignore_stop_signals(worker_id: int) -> None:
    """Leaves both signals to the main process; for `worker_init_fn` of a data loader.

    A terminal and a scheduler send them to all processes of a run, which would lose its readers first.

    Args:
        worker_id: number of the worker; not used.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_readers() -> None:
    """Kills the reading processes that an error has left behind.

    A run that ends well has ended its readers by then. Python asks those that are left to end by SIGTERM,
    which they ignore, and would wait for them for ever. torch would report each as killed for want of memory.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
