import os
import signal
from functools import partial

import pytest

from bundle.distributed.processes import ProcessError, StoppedError, run_tasks
from bundle.run.signals import STOP_SIGNALS


@pytest.fixture(autouse=True)
def signals_of_a_terminal():
    """However the tests were started: a process in the background of a script ignores Ctrl-C."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def doubled(number):
    return 2 * number


def doubled_or_signal(number, sent, at):
    if number == at:
        os.kill(os.getppid() if sent == signal.SIGTERM else os.getpid(), sent)
    return 2 * number


def test_every_item_is_worked_on_once(recwarn):
    for num_workers in (0, 2):
        assert sorted(run_tasks(doubled, range(5), num_workers)) == [0, 2, 4, 6, 8]


def test_nothing_to_do_is_done():
    assert list(run_tasks(doubled, [], 2)) == []


def test_a_signal_ends_the_work_after_the_items_at_hand():
    done = []
    with pytest.raises(StoppedError, match="stopped by SIGINT with 2 volumes left; run it again") as stopped:
        for result in run_tasks(partial(doubled_or_signal, sent=signal.SIGINT, at=2), range(5), 0):
            done.append(result)

    assert done == [0, 2, 4] and stopped.value.number == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_at_the_last_item_changes_nothing():
    work = partial(doubled_or_signal, sent=signal.SIGINT, at=4)

    assert list(run_tasks(work, range(5), 0)) == [0, 2, 4, 6, 8]


def test_a_signal_to_this_process_lets_its_workers_finish_what_they_have():
    done = []
    with pytest.raises(StoppedError, match="stopped by SIGTERM") as stopped:
        for result in run_tasks(partial(doubled_or_signal, sent=signal.SIGTERM, at=0), range(5000), 1):
            done.append(result)

    assert 0 in done and f"with {5000 - len(done):,} volumes left" in str(stopped.value)


def test_a_killed_process_is_told():
    with pytest.raises(ProcessError, match="a process was killed, usually out of memory; run it again"):
        list(run_tasks(partial(doubled_or_signal, sent=signal.SIGKILL, at=1), range(3), 1))
