"""Non-finite losses and gradients: nothing moves, all is counted, and the run rolls back or stops."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from monai.handlers import from_engine

from bundle.checkpoints.handler import CheckpointHandler
from bundle.engines.advice import ADVICE
from bundle.engines.events import AdversarialEvents
from bundle.handlers.nonfinite import DivergenceError, HealthGuard
from bundle.run.rules import SettingsError

RANKS = Path(__file__).with_name("guard_on_ranks.py")


class Poison:
    """Makes one number of the images, of the generator's or of the discriminators' gradient undefined."""

    def __init__(self, run, where: str, iterations) -> None:
        self.run, self.where, self.iterations = run, where, iterations

    def attach(self, engine) -> None:
        if self.where == "image":
            engine.add_event_handler(Events.GET_BATCH_COMPLETED, self.spoil_image)
        elif self.where == "generator":
            self.hook(next(self.run.network.decoder.parameters()), engine)
        else:
            self.hook(self.run.discriminators["image"][0].conv.weight, engine)

    def hook(self, parameter, engine) -> None:
        was, _ = parameter.requires_grad, parameter.requires_grad_(True)
        parameter.register_hook(
            lambda gradient: gradient * (math.nan if engine.state.iteration in self.iterations else 1.0)
        )
        parameter.requires_grad_(was)

    def spoil_image(self, engine) -> None:
        # the batch is fetched before its iteration is counted
        if engine.state.iteration + 1 in self.iterations:
            engine.state.batch["image"][0, 0, 3, 4, 5] = math.nan


def guarded(small_run, network, folder, where, iterations, length=4, events=None, save=True, **settings):
    """A run across the gate (at 1) with a guard, poisoned in these iterations."""
    events = [] if events is None else events

    def handlers(run):
        guard = HealthGuard(run.state, folder, note_event=lambda **event: events.append(event), **settings)
        saves = [CheckpointHandler(run.state, folder, interval=1)] if save else []
        return [Poison(run, where, iterations), guard, *saves]

    run = small_run(
        network, length, start=1, weights=(1.0, 0.0, 4.0), warmup=2, max_epochs=1, handlers=handlers
    )
    return run


def everything(run):
    optimizers = [run.optimizer.state_dict()["state"], run.discriminator_optimizer.state_dict()["state"]]
    moments = [
        value
        for state in optimizers
        for slots in state.values()
        for value in slots.values()
        if torch.is_tensor(value)
    ]
    tensors = [*run.network.state_dict().values(), *run.discriminators.state_dict().values(), *moments]
    return [tensor.clone() for tensor in tensors]


def equal(first, second):
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("where", ["image", "generator", "discriminators"])
def test_a_bad_iteration_moves_nothing_and_the_next_one_goes_on(tiny_vqgan, small_run, tmp_path, where):
    run, seen = guarded(small_run, tiny_vqgan(), tmp_path, where, {3}, save=False), {}
    run.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: seen.update({engine.state.iteration: everything(run)})
    )
    run.run()

    assert equal(seen[2], seen[3])
    assert not equal(seen[3], seen[4])
    assert all(bool(tensor.isfinite().all()) for tensor in seen[4])
    assert run.trainer.state.iteration == 4
    assert run.optimizer.schedule.last_epoch == 3
    assert run.trainer.extras["health_guard"].state_dict() == {"skipped": 1, "in_a_row": 0, "rollbacks": 0}


def test_an_undefined_first_batch_does_not_become_the_codebook(tiny_vqgan, small_run, tmp_path):
    network = tiny_vqgan()
    network.quantizer.initialized.fill_(False)
    network.quantizer._forget()
    run = guarded(small_run, network, tmp_path, "image", {1}, length=1, save=False)
    run.trainer.add_event_handler(
        Events.GET_BATCH_COMPLETED, lambda engine: engine.state.batch["image"].fill_(math.nan)
    )
    with pytest.raises(DivergenceError, match="moved no weight"):
        run.run()

    assert not network.quantizer.is_initialized
    assert bool(network.quantizer.embedding.isfinite().all())


def test_a_skipped_iteration_leaves_no_point_in_the_curves(tiny_vqgan, small_run, tmp_path):
    run, outputs = guarded(small_run, tiny_vqgan(), tmp_path, "image", {2}, length=2, save=False), []
    run.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda e: outputs.append(dict(e.current.losses))
    )
    run.run()

    assert outputs[0] and not outputs[1]
    assert from_engine(["loss"], first=True)(run.trainer.state.output) is None  # MONAI's handlers skip it too
    assert run.network.quantizer.counts() is None


def test_without_bad_numbers_the_guard_changes_no_bit(tiny_vqgan, small_run, tmp_path):
    results = []
    for handlers in (lambda run: [], lambda run: [HealthGuard(run.state, tmp_path)]):
        torch.manual_seed(1)
        run = small_run(tiny_vqgan(), 3, start=1, weights=(1.0, 0.0, 4.0), handlers=handlers).run()
        results.append(everything(run))
    assert equal(*results)


def test_too_many_in_a_row_roll_back_weights_optimizers_and_codebook_but_not_the_counter(
    tiny_vqgan, small_run, tmp_path
):
    events = []
    settings = {"patience": 2, "learning_rate_ratio": 0.25, "events": events}
    run = guarded(small_run, tiny_vqgan(), tmp_path, "image", {3, 4}, length=5, save=False, **settings)
    saver, states, rates = CheckpointHandler(run.state, tmp_path, interval=100), {}, {}

    @run.trainer.on(Events.ITERATION_COMPLETED)
    def remember(engine):
        number = engine.state.iteration
        states[number], rates[number] = everything(run), run.optimizer.schedule.base_lrs
        if number == 1:
            saver.save_last(engine)

    run.run()
    assert equal(states[4], states[1]) and not equal(states[2], states[1])
    assert rates[3] == [1e-4] and rates[4] == [0.25e-4]
    assert run.trainer.state.iteration == 5
    assert [(e["kind"], e["iteration"]) for e in events] == [("non_finite", 3), ("rollback", 4)]
    assert events[1]["back_to"] == 1 and events[1]["learning_rate_factor"] == 0.25
    assert "the batch itself" in events[0]["what"]


@pytest.mark.parametrize("policy", ["stop", "rollback"])
def test_a_run_that_may_not_or_cannot_roll_back_stops_with_a_diagnosis(
    tiny_vqgan, small_run, tmp_path, policy
):
    run = guarded(
        small_run, tiny_vqgan(), tmp_path, "generator", {1, 2}, save=False, patience=2, policy=policy
    )
    with pytest.raises(
        DivergenceError, match="iteration 2: gradient of the generator not finite for 2"
    ) as told:
        run.run()
    assert ADVICE["non_finite"].change in str(told.value)


def test_a_run_that_stays_ill_stops_after_three_rollbacks(tiny_vqgan, small_run, tmp_path):
    run = guarded(small_run, tiny_vqgan(), tmp_path, "generator", range(2, 99), length=9, patience=1)
    with pytest.raises(DivergenceError, match="iteration 5: .* after 3 rollbacks"):
        run.run()


def test_a_resumed_run_keeps_the_lowered_learning_rate_and_the_counts(tiny_vqgan, small_run, tmp_path):
    run = guarded(small_run, tiny_vqgan(), tmp_path, "image", {2, 3}, length=3, patience=1).run()
    content = run.state.state_dict(run.trainer)

    resumed = guarded(small_run, tiny_vqgan(), tmp_path, "image", set(), length=4, save=False)
    resumed.state.load_state_dict(content, resumed.trainer)
    guard = resumed.trainer.extras["health_guard"]
    guard._set_learning_rates()
    assert guard.state_dict() == {"skipped": 2, "in_a_row": 0, "rollbacks": 2}
    assert resumed.optimizer.schedule.base_lrs == [0.25e-4]
    assert resumed.optimizer.param_groups[0]["lr"] == pytest.approx(
        0.25e-4 * resumed.optimizer.schedule.lr_lambdas[0](resumed.optimizer.schedule.last_epoch)
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "hope"}, "`nonfinite_policy` must be one of rollback, stop, got 'hope'"),
        ({"patience": 0}, "`nonfinite_patience` must be a whole number from 1, got 0"),
        (
            {"learning_rate_ratio": 0.0},
            "`rollback_learning_rate_ratio` must be a number above 0 up to 1, got 0.0",
        ),
    ],
)
def test_impossible_settings_are_refused(small_run, tiny_vqgan, tmp_path, settings, message):
    run = small_run(tiny_vqgan(), 1, weights=(0, 0, 0))
    with pytest.raises(SettingsError, match=message):
        HealthGuard(run.state, tmp_path, **settings)


def test_the_decision_is_taken_before_anything_moves():
    names = [event.value for event in AdversarialEvents]
    assert names.index("gradients_completed") > names.index("discriminator_step")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two ranks got, of which the second had an undefined batch, and their folder."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {"PYTHONPATH": str(RANKS.parents[3])}
    subprocess.run([sys.executable, RANKS, folder], env=environment, check=True, timeout=120)
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_all_ranks_skip_an_iteration_that_is_bad_on_one_of_them(ranks):
    good, bad = ranks[1]
    assert (good["skipped"], bad["skipped"]) == (1, 1)
    assert torch.equal(good["weights"], bad["weights"])
    first, second, third = good["weights"]
    assert torch.equal(first, second) and not torch.equal(second, third)
    assert good["told"] == bad["told"] == ["non_finite loss, gradient of the generator, the batch of rank 1"]


def test_all_ranks_go_back_to_the_checkpoint_that_rank_0_finds(ranks):
    good, bad = (torch.load(ranks[0] / f"back_{rank}.pt", weights_only=True) for rank in range(2))
    assert (good["rollbacks"], bad["rollbacks"]) == (1, 1)
    assert torch.equal(good["weights"], bad["weights"])
    first, _, third = good["weights"]
    assert torch.equal(first, third)


def test_only_the_first_of_connected_ranks_writes_checkpoints(ranks):
    folder, results = ranks
    assert [result["check"] for result in results] == ["ok", "ok"]
    assert (folder / "rank_0" / "checkpoints" / "last.pt").is_file()
    assert not (folder / "rank_1").exists()


def test_a_run_that_moved_no_weight_fails_at_its_end(small_run, tiny_vqgan, tmp_path):
    run = guarded(small_run, tiny_vqgan(), tmp_path, "image", range(100), length=4, patience=10)
    before = {name: tensor.clone() for name, tensor in run.network.state_dict().items()}

    with pytest.raises(
        DivergenceError, match="^iteration 4: the run is over and moved no weight, .* all of its 4"
    ):
        run.run()
    assert all(torch.equal(before[name], tensor) for name, tensor in run.network.state_dict().items())


def test_one_sound_iteration_is_enough(small_run, tiny_vqgan, tmp_path):
    run = guarded(small_run, tiny_vqgan(), tmp_path, "image", (1, 3, 4), length=4, patience=10)
    run.run()
    assert run.trainer.state.iteration == 4
