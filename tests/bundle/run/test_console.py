import io
import logging
import subprocess
import sys

import pytest
from tqdm import tqdm

from bundle.run.console import tidy_console
from tests.guide import ROOT


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal():
    """A terminal that shows the log, as logging.conf sets it up."""
    screen = Terminal()
    handler = logging.StreamHandler(screen)
    logging.getLogger().addHandler(handler)
    yield screen
    logging.getLogger().removeHandler(handler)


def tidy(screen, monkeypatch):
    """`tidy_console` where both streams go to this terminal; pytest sets its own before every test."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", screen)
        patch.setattr(sys, "stderr", screen)
        tidy_console()


def test_log_lines_stand_above_the_bar_and_not_behind_it(terminal, monkeypatch):
    tidy(terminal, monkeypatch)
    tidy(terminal, monkeypatch)  # a second run in the same process

    with tqdm(total=2, desc="training", file=terminal, mininterval=0) as bar:
        bar.update()
        logging.getLogger("bundle").error("a line")
        bar.update()

    shown = terminal.getvalue()
    before = shown[: shown.index("a line")]
    assert shown.count("a line\n") == 1
    assert before.endswith("\r")  # the bar was taken away, so that the line begins at the border


def test_ignite_does_not_speak_of_resuming_where_a_run_begins(terminal, monkeypatch):
    tidy(terminal, monkeypatch)
    log = logging.getLogger("ignite.engine.engine.AdversarialTrainer")

    log.error("Engine run resuming from iteration 0, epoch 0 until 2 epochs")
    log.error("Engine run resuming from iteration 50, epoch 1 until 2 epochs")

    assert terminal.getvalue() == "Engine run resuming from iteration 50, epoch 1 until 2 epochs\n"


def test_the_help_of_a_program_names_it_as_it_is_started():
    command = [sys.executable, "-m", "scripts.install", "--help"]
    told = subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout
    assert told.startswith("usage: python -m scripts.install ")
