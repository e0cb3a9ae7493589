"""Ends a run cleanly when a scheduler or a person asks for it."""

import logging
import signal

from ignite.engine import Engine, Events
from monai.engines import Trainer

from bundle.handlers.validation import ValidationStopped
from bundle.run.signals import StopSignals

logger = logging.getLogger(__name__)


class StopOnSignal:
    """Ends the run after the iteration in which SIGTERM, Ctrl-C or SIGHUP comes; a second signal kills.

    It only terminates the engine: checkpoints and curves listen to `Events.TERMINATE`. A running validation
    is aborted, since a whole volume may take longer than a scheduler waits; it is repeated after resume.

    Args:
        validator: the validation engine, if there is one.

    Attributes:
        stopped_by: number of the signal that ended the run; None if it came to its own end.
    """

    def __init__(self, validator: Engine | None = None) -> None:
        self.validator = validator
        self.stopped_by: int | None = None
        self._signals = StopSignals(self._react)
        self._is_validating = False

    def attach(self, engine: Trainer) -> None:
        """Joins the trainer, and the validation engine if there is one; attach it before all others."""
        engine.add_event_handler(Events.STARTED, self.listen)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._end_run)
        if self.validator is not None:
            self.validator.add_event_handler(Events.STARTED, self._enter_validation)
            self.validator.add_event_handler(Events.COMPLETED, self._leave_validation)

    def listen(self) -> None:
        """Takes the signals over; from the first one on they do what the system does by default."""
        self._signals.listen()

    def give_back(self) -> int | None:
        """Restores what the signals did, for programs that live on, such as a server.

        Returns:
            `stopped_by`.
        """
        self._signals.give_back()
        return self.stopped_by

    def _react(self, received: signal.Signals) -> None:
        logger.warning("%s: saving, then ending; a second signal ends at once", received.name)
        if self._is_validating:
            self._is_validating = False
            self.stopped_by = received
            raise ValidationStopped(f"{received.name} in a validation, which is repeated after resume")

    def _enter_validation(self) -> None:
        self._is_validating = True

    def _leave_validation(self) -> None:
        self._is_validating = False

    def _end_run(self, engine: Trainer) -> None:
        if self._signals.received is not None:
            self.stopped_by = self._signals.received
            engine.terminate(skip_completed=True)
