"""Lets the files of TensorBoard's events have the order of their names, as in a process of its own."""

import pytest
from tensorboard.summary.writer import event_file_writer


@pytest.fixture(autouse=True)
def numbered_from_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that closes its log and writes again has two files; of one second, 10 is read before 9."""
    counter = type(event_file_writer._global_uid)(0)
    monkeypatch.setattr(event_file_writer, "_global_uid", counter)
