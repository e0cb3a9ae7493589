"""Ends a run cleanly when a scheduler or a person asks for it."""

import logging
import signal
from functools import partial

from ignite.engine import Engine, Events

from bundle.distributed.collectives import any_rank
from bundle.distributed.launcher import launched
from bundle.engines.trainer import AdversarialTrainer
from bundle.handlers.validation import ValidationStopped
from bundle.run.signals import PASSED_ON_S, StopSignals

logger = logging.getLogger(__name__)


class StopOnSignal:
    """Ends the run after the iteration in which SIGTERM, Ctrl-C or SIGHUP comes; a second signal kills.

    It only terminates the engine: checkpoints and curves listen to `Events.TERMINATE`. A running validation
    is aborted, since a whole volume may take longer than a scheduler waits; it is repeated after resume. All
    ranks end at the same iteration, whichever gets the signal. The trainer's `state.stopped_by` is the number
    of the signal that ended the run, on a rank that got it; None if there was none.
    """

    def __init__(self) -> None:
        self._is_validating = False

    def attach(self, engine: AdversarialTrainer) -> None:
        """Joins the trainer, and its validator if there is one; attach it before all others."""
        signals = StopSignals(partial(self._react, engine))
        engine.state.stopped_by = None
        # `finish_run` restores what the signals did before
        engine.add_event_handler(Events.STARTED, signals.listen)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._end_run, signals)
        if engine.validator is not None:
            engine.validator.add_event_handler(Events.STARTED, self._enter_validation)
            engine.validator.add_event_handler(Events.ITERATION_COMPLETED, self._leave_validation)

    def _react(self, engine: AdversarialTrainer, received: signal.Signals) -> None:
        passed_on = f", {PASSED_ON_S:g} s from now or later," if launched().size > 1 else ""
        logger.warning("%s: saving, then ending; a second signal%s ends at once", *(received.name, passed_on))
        if self._is_validating:
            self._is_validating = False
            engine.state.stopped_by = received
            raise ValidationStopped(f"{received.name} in a validation, which is repeated after resume")

    def _enter_validation(self) -> None:
        self._is_validating = True

    def _leave_validation(self, validator: Engine) -> None:
        """Makes a signal wait after the last volume, while all ranks exchange figures."""
        self._is_validating = self._is_validating and validator.state.iteration < _length(validator)

    def _end_run(self, engine: AdversarialTrainer, signals: StopSignals) -> None:
        if any_rank(signals.received is not None):
            engine.state.stopped_by = signals.received
            engine.terminate(skip_completed=True)


def _length(engine: Engine) -> int:
    return int(engine.state.epoch_length or 1)
