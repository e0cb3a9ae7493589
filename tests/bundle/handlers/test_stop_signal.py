"""Signals that ask a run to end; the tests send them to this very process."""

import os
import signal

import pytest
from ignite.engine import Engine, Events
from torch.utils.tensorboard import SummaryWriter

from bundle.checkpoints.file import read_checkpoint
from bundle.checkpoints.handler import CheckpointHandler
from bundle.handlers.curves import ScalarLog, TensorBoardLog
from bundle.handlers.stop_signal import StopOnSignal
from bundle.handlers.validation import ValidateEvery
from bundle.run.record import finish_run, start_run
from bundle.run.signals import STOP_SIGNALS, StopSignals, ignore_stop_signals


@pytest.fixture(autouse=True)
def own_signals():
    """Signals as in a terminal, however the tests were started."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Send:
    """Sends a signal to this process when an event happens."""

    def __init__(self, event, number=signal.SIGTERM):
        self.event, self.number = event, number

    def attach(self, engine):
        engine.add_event_handler(self.event, lambda: os.kill(os.getpid(), self.number))


class Validator(Engine):
    """Looks at one volume."""

    def __init__(self):
        super().__init__(lambda *_: None)

    def run(self):
        super().run([0])


@pytest.fixture
def stopped_run(tmp_path, tiny_vqgan, small_run):
    """A run of 2 epochs of 3 iterations with a handler that sends a signal, and ends it; its trainer."""

    def make(*senders, validator=None):
        def handlers(run):
            validate = [] if validator is None else [ValidateEvery(1)]
            return [StopOnSignal(), *senders, *validate, CheckpointHandler(run.state, tmp_path, 1000)]

        shape = {"weights": (0, 0, 0), "max_epochs": 2}
        return small_run(tiny_vqgan(), 3, validator=validator, handlers=handlers, **shape).run().trainer

    return make


def saved_iteration(folder):
    return read_checkpoint(folder / "checkpoints" / "last.pt")["trainer"]["iteration"]


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=str)
def test_the_iteration_is_finished_and_saved_and_the_run_ends(stopped_run, tmp_path, number):
    trainer = stopped_run(Send(Events.ITERATION_STARTED(once=2), number))
    assert trainer.state.stopped_by == number
    assert trainer.state.iteration == saved_iteration(tmp_path) == 2


def test_a_signal_before_the_first_iteration_still_leaves_a_checkpoint(stopped_run, tmp_path):
    trainer = stopped_run(Send(Events.STARTED))
    assert trainer.state.stopped_by == signal.SIGTERM
    assert trainer.state.iteration == saved_iteration(tmp_path) == 1


def test_after_the_first_signal_a_second_one_does_what_the_system_does(stopped_run):
    stopped_run(Send(Events.ITERATION_STARTED(once=1)))
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == [signal.SIG_DFL] * 3


def test_under_a_launcher_which_passes_signals_on_a_second_one_counts_only_after_some_seconds(monkeypatch):
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    seen, ended = [], []
    monkeypatch.setattr(signal, "raise_signal", ended.append)
    with StopSignals(seen.append):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert (seen, ended) == ([signal.SIGTERM], [])
        monkeypatch.setattr("bundle.run.signals.PASSED_ON_S", 0.0)
        os.kill(os.getpid(), signal.SIGTERM)
    assert (seen, ended) == ([signal.SIGTERM], [signal.SIGTERM])


def test_a_validation_is_left_at_once_and_the_state_before_it_saved(stopped_run, tmp_path):
    validator = Validator()
    seen = []
    validator.add_event_handler(Events.ITERATION_STARTED, lambda: seen.append("started"))
    Send(Events.ITERATION_STARTED(once=1)).attach(validator)
    validator.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append("completed"))
    trainer = stopped_run(validator=validator)
    assert trainer.state.stopped_by == signal.SIGTERM
    assert seen == ["started"]
    assert trainer.state.iteration == saved_iteration(tmp_path) == 3


def test_a_run_without_signals_is_not_stopped(stopped_run):
    trainer = stopped_run()
    assert trainer.state.stopped_by is None
    assert trainer.state.iteration == 6


def test_an_ignored_signal_stays_ignored_as_under_nohup(stopped_run):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    trainer = stopped_run(Send(Events.ITERATION_STARTED(once=2), signal.SIGHUP))
    assert trainer.state.stopped_by is None
    assert trainer.state.iteration == 6


def test_the_curves_are_flushed_when_a_run_is_stopped(tmp_path, tiny_vqgan, small_run, monkeypatch):
    def handlers(run):
        log = ScalarLog(TensorBoardLog(tmp_path), tmp_path, 2, run.optimizer, progress=False)
        return [StopOnSignal(), Send(Events.ITERATION_STARTED(once=2)), log]

    closed = []
    monkeypatch.setattr(SummaryWriter, "close", lambda writer: closed.append(writer))
    run = small_run(tiny_vqgan(), 3, weights=(0, 0, 0), handlers=handlers)
    run.run()
    assert run.trainer.state.iteration == 2 and closed


def test_a_server_that_trained_gets_its_signals_back(stopped_run, tmp_path):
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    start_run(str(tmp_path))
    stopped_run()
    assert {number: signal.getsignal(number) for number in STOP_SIGNALS} != before

    finish_run(str(tmp_path))
    assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == before


def test_readers_leave_the_signals_to_the_main_process():
    ignore_stop_signals(0)
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == [signal.SIG_IGN] * 3
