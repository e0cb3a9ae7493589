import logging

import pytest
from torch import nn

from bundle.checkpoints.file import write_checkpoint
from bundle.checkpoints.folder import best_paths, newest_sound_checkpoint, rolling_paths


@pytest.fixture
def folder(tmp_path, tiny_settings):
    """Writes training checkpoints of these iterations."""

    def make(**iterations):
        for name, iteration in iterations.items():
            model = nn.Linear(2, 2).state_dict()
            content = {"model": model, "network": tiny_settings, "trainer": {"iteration": iteration}}
            write_checkpoint(tmp_path / f"{name}.pt", content)
        return tmp_path

    return make


def damage(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("iterations", "newest"),
    [
        ({}, None),
        ({"last": 6, "previous_1": 4, "best_1": 5}, "last.pt"),
        ({"previous_1": 4, "previous_2": 2, "best_1": 2}, "previous_1.pt"),
        ({"last": 3, "previous_1": 4}, "previous_1.pt"),
        ({"last": 4, "best_1": 4}, "last.pt"),
        ({"best_1": 2, "best_2": 6, "best_3": 4}, "best_2.pt"),
        ({"best_new": 6, "mine": 8}, None),
    ],
)
def test_the_newest_is_that_of_the_highest_iteration_the_last_before_the_best(folder, iterations, newest):
    found = newest_sound_checkpoint(folder(**iterations))
    assert (found and found.name) == newest


def test_damaged_ones_are_skipped_and_each_is_named(folder, caplog):
    path = folder(last=6, previous_1=4, previous_2=2, best_1=5)
    damage(path / "last.pt"), damage(path / "previous_1.pt")
    with caplog.at_level(logging.WARNING):
        assert newest_sound_checkpoint(path) == path / "previous_2.pt"
    assert [record.args[0].args[0].partition(": ")[0] for record in caplog.records] == [
        str(path / "last.pt"),
        str(path / "previous_1.pt"),
    ]
    damage(path / "previous_2.pt")
    assert newest_sound_checkpoint(path) == path / "best_1.pt"
    damage(path / "best_1.pt")
    assert newest_sound_checkpoint(path) is None


def test_an_installed_model_is_no_state_of_a_run(folder, tiny_settings):
    path = folder(previous_1=2)
    model = {"model": nn.Linear(2, 2).state_dict(), "network": tiny_settings}
    write_checkpoint(path / "last.pt", model)
    assert newest_sound_checkpoint(path) == path / "previous_1.pt"


def test_paths_come_in_their_order(folder):
    path = folder(previous_10=1, previous_2=2, previous_1=3, last=4, best_3=1, best_1=2, best_4=3)
    assert [found.name for found in rolling_paths(path)] == [
        "last.pt", "previous_1.pt", "previous_2.pt", "previous_10.pt",
    ]  # fmt: skip
    assert [found.name for found in best_paths(path)] == ["best_1.pt", "best_3.pt"]
