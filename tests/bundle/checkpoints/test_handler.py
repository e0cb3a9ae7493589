import math
import random

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from bundle.checkpoints.file import read_checkpoint
from bundle.checkpoints.folder import rolling_paths
from bundle.checkpoints.handler import CheckpointHandler
from bundle.checkpoints.state import TrainingState, random_state, set_random_state
from bundle.handlers.gate import IterationGate
from bundle.run.rules import SettingsError

NAN, INF = math.nan, math.inf


class BareTrainer(Engine):
    """A trainer that computes nothing."""

    def __init__(self, validator=None):
        super().__init__(lambda *_: None)
        self.validator, self.extras = validator, {}


def new_state(settings):
    return TrainingState(nn.Linear(2, 2), settings, nn.ModuleDict(), {})


def validated_run(state, folder, figures, start=0, interval=1000, gate=None, lpips=None):
    """A run that is validated after every iteration, with these figures; it starts at iteration `start`."""
    validator = Engine(lambda *_: None)
    trainer, coming = BareTrainer(validator), iter(figures)

    @validator.on(Events.EPOCH_COMPLETED)
    def measure(engine):
        engine.state.metrics["val/psnr"] = next(coming)
        if lpips is not None:
            engine.state.metrics["val/lpips"] = next(lpips)

    @trainer.on(Events.STARTED)
    def resume(engine):
        engine.state.iteration = start

    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: validator.run([0]))
    handler = CheckpointHandler(state, folder, interval, gate=gate)
    handler.attach(trainer)
    trainer.run([0], epoch_length=start + len(figures))
    return handler


def best_files(folder):
    """(figure, iteration) of best_1.pt, best_2.pt, ... as the files tell it."""
    contents = [read_checkpoint(path) for path in sorted((folder / "checkpoints").glob("best_*.pt"))]
    return [(content["figures"]["val/psnr"], content["trainer"]["iteration"]) for content in contents]


@pytest.mark.parametrize(
    ("figures", "best"),
    [
        ([1.0], [(1.0, 1)]),
        ([1.0, 3.0, 2.0, 5.0, 4.0], [(5.0, 4), (4.0, 5), (3.0, 2)]),
        ([2.0, 2.0, 2.0, 2.0], [(2.0, 1), (2.0, 2), (2.0, 3)]),
        ([2.0, 3.0, 2.0, 2.0], [(3.0, 2), (2.0, 1), (2.0, 3)]),
        ([NAN, 1.0, NAN, -INF], [(1.0, 2)]),
        ([1.0, INF], [(INF, 2), (1.0, 1)]),
    ],
    ids=["first", "rising and falling", "ties", "ties below", "not a number", "perfect"],
)
def test_the_three_best_are_ranked_and_of_equals_the_earlier_leads(tmp_path, tiny_settings, figures, best):
    handler = validated_run(new_state(tiny_settings), tmp_path, figures)
    assert handler.best == best
    assert best_files(tmp_path) == best
    assert not list((tmp_path / "checkpoints").glob("*new*"))


def test_a_resumed_run_goes_on_with_the_ranking(tmp_path, tiny_settings):
    validated_run(new_state(tiny_settings), tmp_path, [3.0, 5.0])
    validated_run(new_state(tiny_settings), tmp_path, [4.0, 1.0, 6.0], start=2)
    assert best_files(tmp_path) == [(6.0, 5), (5.0, 2), (4.0, 3)]


@pytest.mark.parametrize(
    ("second_time", "best"),
    [
        ([5.0], [(5.0, 2), (4.0, 3), (3.0, 1)]),
        ([3.5], [(4.0, 3), (3.5, 2), (3.0, 1)]),
        ([1.0], [(4.0, 3), (3.0, 1), (1.0, 2)]),
        ([9.0, 2.0], [(9.0, 2), (3.0, 1), (2.0, 3)]),
    ],
)
def test_an_iteration_that_a_resumed_run_comes_by_again_is_ranked_once(
    tmp_path, tiny_settings, second_time, best
):
    validated_run(new_state(tiny_settings), tmp_path, [3.0, 5.0, 4.0])
    validated_run(new_state(tiny_settings), tmp_path, second_time, start=1)
    assert best_files(tmp_path) == best


def test_a_fresh_run_knows_no_ranking(tmp_path, tiny_settings):
    assert validated_run(new_state(tiny_settings), tmp_path, [NAN]).best == []


def test_a_best_that_cannot_be_written_costs_none_of_the_older_ones(tmp_path, tiny_settings):
    state = new_state(tiny_settings)
    validated_run(state, tmp_path, [1.0, 2.0, 3.0])
    state.settings = {"preset": lambda: "cannot be saved"}
    with pytest.raises((AttributeError, TypeError, RuntimeError), match="lambda"):
        validated_run(state, tmp_path, [4.0], start=3)
    assert best_files(tmp_path) == [(3.0, 3), (2.0, 2), (1.0, 1)]


def test_a_gap_that_a_killed_run_left_is_closed(tmp_path, tiny_settings):
    validated_run(new_state(tiny_settings), tmp_path, [1.0, 2.0, 3.0])
    (tmp_path / "checkpoints" / "best_1.pt").unlink()
    validated_run(new_state(tiny_settings), tmp_path, [0.5, 2.5], start=3)
    assert best_files(tmp_path) == [(2.5, 5), (2.0, 2), (1.0, 1)]


def test_last_is_written_every_interval_and_once_at_the_end(tmp_path, tiny_settings):
    state, trainer, written = new_state(tiny_settings), BareTrainer(), []
    CheckpointHandler(state, tmp_path, interval=2).attach(trainer)
    last = tmp_path / "checkpoints" / "last.pt"

    def remember(engine):
        written.append(
            (last.stat().st_ino, read_checkpoint(last)["trainer"]["iteration"]) if last.exists() else None
        )

    trainer.add_event_handler(Events.ITERATION_COMPLETED, remember)
    trainer.add_event_handler(Events.COMPLETED, remember)
    trainer.run([0], epoch_length=5)
    assert [entry and entry[1] for entry in written] == [None, 2, 2, 4, 4, 5]
    trainer.state.max_epochs = None
    written.clear()
    trainer.run([0], epoch_length=4)
    assert written[-1] == written[-2], "the last iteration has just been saved"


def test_everything_of_a_run_is_in_the_checkpoint_and_loads_with_weights_only(
    tmp_path, tiny_vqgan, small_run
):
    run = small_run(
        tiny_vqgan(),
        iterations=2,
        weights=(1.0, 0.0, 4.0),
        warmup=1,
        handlers=lambda run: [CheckpointHandler(run.state, tmp_path, 10)],
    ).run()
    content = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    parts = {"model", "network", "discriminators", "optimizers", "schedules", "trainer", "random", "extras"}
    parts |= {"trained_on", "recipe"}
    assert set(content) == parts | {"format_version"}
    torch.testing.assert_close(content["model"], dict(run.network.state_dict()), rtol=0, atol=0)
    assert {"quantizer.embedding", "quantizer.initialized", "quantizer.updates"} <= set(content["model"])
    assert content["trainer"] == {
        "iteration": 2,
        "epoch_length": 2,
        "max_epochs": 1,
        "learning_rate_share": 1.0,
    }
    assert set(content["optimizers"]) == {"generator", "discriminator"}
    assert content["schedules"] == {"generator": {"last_epoch": 2}, "discriminator": {"last_epoch": 1}}


class Counter:
    """Counts, and goes on counting after a restart."""

    def __init__(self, count=0):
        self.count = count

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, content):
        self.count = content["count"]


def test_extras_come_back_by_name_and_those_that_a_file_does_not_know_are_left_alone(tiny_settings):
    state, engine = new_state(tiny_settings), BareTrainer()
    engine.state.epoch_length = 10
    engine.extras = {"known": Counter(3), "dropped": Counter(4)}
    content = state.state_dict(engine)
    known, new = Counter(), Counter(7)
    engine.extras = {"known": known, "new": new}
    state.load_state_dict(content, engine)
    assert (known.count, new.count) == (3, 7)
    del content["extras"]  # as in format 1
    state.load_state_dict(content, engine)
    assert (known.count, new.count) == (3, 7)


def test_random_numbers_go_on_where_they_were(tmp_path):
    random.gauss(0, 1), np.random.normal()  # leaves one number of a pair behind, which is state too
    torch.save(random_state(), tmp_path / "random.pt")

    def draw():
        return (
            random.gauss(0, 1),
            random.random(),
            np.random.normal(),
            np.random.rand(),
            float(torch.rand(())),
        )

    expected = draw()
    set_random_state(torch.load(tmp_path / "random.pt", weights_only=True))
    assert draw() == expected


@pytest.mark.parametrize(("keep_last", "kept"), [(1, [9]), (3, [9, 8, 6]), (9, [9, 8, 6, 4, 2])])
def test_as_many_of_the_last_are_kept_as_wanted(tmp_path, tiny_settings, keep_last, kept):
    trainer = BareTrainer()
    CheckpointHandler(new_state(tiny_settings), tmp_path, 2, keep_last=keep_last).attach(trainer)
    trainer.run([0], epoch_length=9)
    paths = rolling_paths(tmp_path / "checkpoints")
    assert [path.name for path in paths] == ["last.pt", *(f"previous_{n}.pt" for n in range(1, len(kept)))]
    assert [read_checkpoint(path)["trainer"]["iteration"] for path in paths] == kept


def test_a_resumed_run_that_keeps_fewer_drops_the_oldest(tmp_path, tiny_settings):
    for start, keep_last in ((0, 4), (6, 2)):
        trainer = BareTrainer()
        trainer.add_event_handler(Events.STARTED, lambda e, start=start: setattr(e.state, "iteration", start))
        CheckpointHandler(new_state(tiny_settings), tmp_path, 2, keep_last=keep_last).attach(trainer)
        trainer.run([0], epoch_length=start + 6)
    paths = rolling_paths(tmp_path / "checkpoints")
    assert [read_checkpoint(path)["trainer"]["iteration"] for path in paths] == [12, 10]


def test_keeping_no_checkpoint_is_refused(tmp_path, tiny_settings):
    with pytest.raises(SettingsError, match="`keep_last` must be a whole number from 1, got 0"):
        CheckpointHandler(new_state(tiny_settings), tmp_path, 1, keep_last=0)


def test_an_interval_below_one_iteration_is_refused(tmp_path, tiny_settings):
    with pytest.raises(SettingsError, match="`checkpoint_interval` must be a whole number from 1, got 0"):
        CheckpointHandler(new_state(tiny_settings), tmp_path, 0)


def test_a_checkpoint_says_what_its_run_and_the_runs_before_it_were_trained_on(tmp_path, tiny_settings):
    seen = {"patients": ["b" * 16], "voxels": ["d" * 16]}
    state = TrainingState(nn.Linear(2, 2), tiny_settings, nn.ModuleDict(), {}, trained_on=lambda: seen)
    state.trained_on_before = {"patients": ["a" * 16, "b" * 16], "voxels": ["c" * 16]}

    validated_run(state, tmp_path, [1.0])

    known = read_checkpoint(tmp_path / "checkpoints" / "best_1.pt")["trained_on"]
    assert known == {"patients": ["a" * 16, "b" * 16], "voxels": ["c" * 16, "d" * 16]}


def test_behind_the_gate_the_best_is_chosen_among_checkpoints_behind_it(tmp_path, tiny_settings):
    """PSNR dips there: the model from before would be taken for the best of an adversarial run."""
    handler = validated_run(
        new_state(tiny_settings), tmp_path, [30.0, 31.0, 32.0, 27.0, 28.0], gate=IterationGate(3)
    )

    assert handler.best == best_files(tmp_path) == [(28.0, 5), (27.0, 4), (32.0, 3)]
    assert handler.metric == "val/psnr"


def test_with_a_backbone_lpips_ranks_an_adversarial_run_also_after_it_is_resumed(tmp_path, tiny_settings):
    state, gate = new_state(tiny_settings), IterationGate(1)
    validated_run(state, tmp_path, [30.0, 27.0, 26.0], gate=gate, lpips=iter([0.3, 0.2, 0.1]))
    assert best_files(tmp_path) == [(26.0, 3), (27.0, 2), (30.0, 1)]

    handler = validated_run(state, tmp_path, [25.0, 29.0], start=3, gate=gate, lpips=iter([0.15, NAN]))
    assert handler.best == [(0.1, 3), (0.15, 4), (0.2, 2)]
    assert best_files(tmp_path) == [(26.0, 3), (25.0, 4), (27.0, 2)]


def test_without_a_gate_psnr_ranks_whatever_else_is_measured(tmp_path, tiny_settings):
    handler = validated_run(new_state(tiny_settings), tmp_path, [30.0, 31.0], lpips=iter([0.1, 0.2]))
    assert handler.best == [(31.0, 2), (30.0, 1)]
