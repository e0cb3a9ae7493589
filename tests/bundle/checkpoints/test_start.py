import logging
import shutil

import pytest
import torch
from ignite.engine import Events

from bundle.checkpoints.file import CheckpointError, network_settings, read_checkpoint, write_checkpoint
from bundle.checkpoints.handler import CheckpointHandler
from bundle.checkpoints.start import DEFAULTS, LoadGenerator, StartFrom, continues_run, settings_of
from bundle.networks.fingerprint import fingerprint

BASE, ADVERSARIAL = (0, 0, 0), (1.0, 0.0, 4.0)
# Two epochs of 4 iterations, ended in the middle of the second; the gate opens after iteration 3.
SHAPE = {
    "iterations": 4,
    "max_epochs": 2,
    "max_iterations": 6,
    "start": 3,
    "warmup": 3,
    "weights": ADVERSARIAL,
}


class History:
    """What can be seen of every iteration; saves a checkpoint after some of them."""

    def __init__(self, run, folder=None, save_at=()):
        self.run, self.folder, self.save_at, self.seen = run, folder, save_at, {}

    def attach(self, engine):
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine):
        iteration = engine.state.iteration
        rates = [part.param_groups[0]["lr"] for part in self.run.state.optimizers.values()]
        losses = {name: float(value) for name, value in engine.current.losses.items()}
        restarts = int(self.run.network.quantizer.counts().restarts)
        self.seen[iteration] = (engine.state.epoch, rates, losses, restarts)
        if iteration in self.save_at:
            write_checkpoint(self.folder / f"{iteration}.pt", self.run.state.state_dict(engine))


@pytest.fixture
def resumed_from(tiny_vqgan, small_run):
    """Makes a run that differs in every number until the checkpoint is loaded, and its history."""

    def make(path, **changes):
        torch.manual_seed(99)
        histories = []

        def handlers(run):
            histories.append(History(run))
            return [StartFrom(run.state, resume_from_checkpoint=path, sampler=run.sampler), histories[0]]

        network = tiny_vqgan()
        network.quantizer.restart_threshold = 2.0
        run = small_run(network, **SHAPE | changes, handlers=handlers)
        return run, histories[0]

    return make


def test_a_resumed_run_equals_the_uninterrupted_one_bit_by_bit(tmp_path, tiny_vqgan, small_run, resumed_from):
    histories = []

    def handlers(run):
        histories.append(History(run, tmp_path, save_at=(2, 3, 5)))
        return histories

    network = tiny_vqgan()
    network.quantizer.initialized.fill_(False)  # the first values come from the first batch
    network.quantizer.restart_threshold = 2.0  # some codes restart in every iteration
    whole = small_run(network, **SHAPE, handlers=handlers).run()
    expected = whole.state.state_dict(whole.trainer)
    assert all(restarts > 0 for *_, restarts in histories[0].seen.values())
    for iteration in (2, 3, 5):
        run, history = resumed_from(tmp_path / f"{iteration}.pt")
        run.run()
        found = run.state.state_dict(run.trainer)
        for part in ("model", "discriminators", "optimizers", "schedules", "trainer"):
            torch.testing.assert_close(found[part], expected[part], rtol=0, atol=0)
        assert found["recipe"] == expected["recipe"] == {"base": "", "iterations": SHAPE["max_iterations"]}
        assert history.seen == {n: seen for n, seen in histories[0].seen.items() if n > iteration}


def test_a_run_that_is_done_trains_no_more_and_still_ends_properly(
    tmp_path, small_run, tiny_vqgan, resumed_from
):
    finished = small_run(tiny_vqgan(), **SHAPE | {"max_iterations": 2})
    History(finished, tmp_path, save_at=(2,)).attach(finished.trainer)
    finished.run()
    run, history = resumed_from(tmp_path / "2.pt", max_iterations=2)
    completed = []
    run.trainer.add_event_handler(Events.COMPLETED, lambda engine: completed.append(engine.state.iteration))
    run.run()
    assert history.seen == {}
    assert completed == [2]
    torch.testing.assert_close(run.network.state_dict(), finished.network.state_dict(), rtol=0, atol=0)


def test_a_resumed_run_takes_a_new_learning_rate_from_its_first_iteration_on(
    tmp_path, tiny_vqgan, small_run, resumed_from
):
    first = small_run(tiny_vqgan(), **SHAPE | {"max_iterations": 2})
    History(first, tmp_path, (2,)).attach(first.trainer)
    first.run()
    run, history = resumed_from(tmp_path / "2.pt", max_iterations=3)
    run.optimizer.schedule.base_lrs = [2 * rate for rate in run.optimizer.schedule.base_lrs]
    used = []
    run.trainer.add_event_handler(
        Events.ITERATION_STARTED, lambda: used.append(run.optimizer.param_groups[0]["lr"])
    )
    run.run()
    assert used == [pytest.approx(2e-4 * run.optimizer.schedule.factor(2))]


@pytest.fixture
def base_checkpoint(tmp_path, tiny_vqgan, small_run):
    """`last.pt` of one iteration of base training, and that run."""
    run = small_run(
        tiny_vqgan(),
        iterations=1,
        weights=BASE,
        handlers=lambda run: [CheckpointHandler(run.state, tmp_path, 1)],
    ).run()
    return tmp_path / "checkpoints" / "last.pt", run


def test_init_from_loads_every_tensor_and_leaves_counters_and_discriminators_alone(
    base_checkpoint, tiny_vqgan, small_run, caplog
):
    path, base = base_checkpoint
    torch.manual_seed(99)
    run = small_run(tiny_vqgan(), iterations=1, weights=ADVERSARIAL, warmup=3)
    discriminators = {name: value.clone() for name, value in run.discriminators.state_dict().items()}
    StartFrom(run.state, init_from=path, sampler=run.sampler).attach(run.trainer)
    seen = []

    @run.trainer.on(Events.STARTED)
    def look(engine):
        seen.append(engine.state.iteration)
        torch.testing.assert_close(run.network.state_dict(), base.network.state_dict(), rtol=0, atol=0)
        torch.testing.assert_close(dict(run.discriminators.state_dict()), discriminators, rtol=0, atol=0)

    with caplog.at_level(logging.INFO):
        run.run()
    assert seen == [0]
    assert run.sampler.start_iteration == 0
    assert run.optimizer.schedule.last_epoch == 1
    assert run.state.recipe(1) == {"base": fingerprint(base.network), "iterations": 1}
    weights = list(base.network.state_dict())
    in_encoder = sum(name.startswith("encoder.") for name in weights)
    assert f"{len(weights)} tensors matched (encoder {in_encoder}, " in caplog.text


def test_a_base_checkpoint_cannot_be_resumed_adversarially_and_is_told_init_from(
    base_checkpoint, tiny_vqgan, small_run
):
    state = small_run(tiny_vqgan(), iterations=1, weights=ADVERSARIAL).state
    with pytest.raises(CheckpointError, match=r"last\.pt: its discriminators .* use --init_from .*last\.pt"):
        StartFrom(state, resume_from_checkpoint=base_checkpoint[0])


def test_an_installed_model_cannot_be_resumed(tmp_path, tiny_vqgan, small_run):
    state = small_run(tiny_vqgan(), iterations=1, weights=BASE).state
    path = tmp_path / "model.pt"
    write_checkpoint(path, {"model": state.network.state_dict(), "network": state.settings})
    with pytest.raises(CheckpointError, match=r"model\.pt: holds weights alone .* use --init_from"):
        StartFrom(state, resume_from_checkpoint=path)


def test_another_epoch_length_is_refused_before_the_run_begins(base_checkpoint, tiny_vqgan, small_run):
    run = small_run(tiny_vqgan(), iterations=5, weights=BASE)
    start = StartFrom(run.state, resume_from_checkpoint=base_checkpoint[0])
    with pytest.raises(CheckpointError, match=r"`epoch_length` 1, here 5; resume it with --epoch_length 1"):
        start.attach(run.trainer)


def test_auto_starts_as_told_otherwise_until_there_is_a_checkpoint_and_then_takes_the_newest(
    base_checkpoint, tmp_path, tiny_vqgan, small_run
):
    def start():
        state = small_run(tiny_vqgan(), iterations=1, weights=BASE).state
        return StartFrom(state, base_checkpoint[0], "auto", output_dir=tmp_path / "run")

    first = start()
    assert (first.path, first.resuming) == (base_checkpoint[0], False)
    copy = tmp_path / "run" / "checkpoints" / "previous_1.pt"
    copy.parent.mkdir(parents=True)
    shutil.copy(base_checkpoint[0], copy)
    copy.with_name("last.pt").write_bytes(copy.read_bytes()[:-1])
    later = start()
    assert (later.path, later.resuming) == (copy, True)


def test_auto_refuses_to_start_anew_where_all_checkpoints_are_damaged(tmp_path, tiny_vqgan, small_run):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best_2.pt").write_bytes(b"torn")
    state = small_run(tiny_vqgan(), iterations=1, weights=BASE).state
    with pytest.raises(CheckpointError, match=r"none can be read .*best_2\.pt.* another --output_dir"):
        StartFrom(state, None, "auto", output_dir=tmp_path)


@pytest.mark.parametrize(
    ("resume", "continues"),
    [(None, False), ("auto", True), ("run/checkpoints/last.pt", True), ("other/checkpoints/last.pt", False)],
)
def test_only_a_checkpoint_of_the_same_folder_continues_its_run(tmp_path, monkeypatch, resume, continues):
    monkeypatch.chdir(tmp_path)
    assert continues_run(tmp_path / "run", resume) is continues


def test_both_ways_at_once_are_refused(base_checkpoint, tiny_vqgan, small_run):
    state = small_run(tiny_vqgan(), iterations=1, weights=BASE).state
    with pytest.raises(CheckpointError, match="must not be given together"):
        StartFrom(state, init_from=base_checkpoint[0], resume_from_checkpoint=base_checkpoint[0])


@pytest.mark.parametrize("way", ["init_from", "resume_from_checkpoint"])
def test_a_checkpoint_of_another_network_is_refused_either_way(base_checkpoint, tiny_vqgan, small_run, way):
    state = small_run(tiny_vqgan(), iterations=1, weights=BASE).state
    state.settings = state.settings | {"num_embeddings": 64}
    with pytest.raises(CheckpointError, match=r"use it with --num_embeddings 32"):
        StartFrom(state, **{way: base_checkpoint[0]})


def test_inference_loads_the_generator_of_a_training_checkpoint(
    base_checkpoint, tiny_vqgan, tiny_settings, small_run
):
    path, base = base_checkpoint
    torch.manual_seed(99)
    network, engine = tiny_vqgan(), small_run(tiny_vqgan(), iterations=1, weights=BASE).trainer
    LoadGenerator(network, path, tiny_settings).attach(engine)
    engine.run()
    torch.testing.assert_close(network.state_dict(), base.network.state_dict(), rtol=0, atol=0)


def test_inference_refuses_a_missing_or_foreign_checkpoint_at_once(
    base_checkpoint, tmp_path, tiny_vqgan, tiny_settings
):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        LoadGenerator(tiny_vqgan(), tmp_path / "gone.pt", tiny_settings)
    with pytest.raises(CheckpointError, match="use it with --preset lite"):
        LoadGenerator(tiny_vqgan(), base_checkpoint[0], tiny_settings | {"preset": "large"})


@pytest.fixture
def installed(tmp_path):
    path = tmp_path / "model.pt"
    settings = network_settings("lite", "fsq", 256, -1000, 500)
    write_checkpoint(path, {"model": {"weight": torch.zeros(3)}, "network": settings})
    return path, settings


def test_settings_that_are_not_given_are_those_of_the_checkpoint(installed):
    path, settings = installed

    assert settings_of(path) == settings
    assert settings_of(path, num_embeddings=256, hu_max=500) == settings


def test_given_settings_that_differ_are_refused_with_the_overrides_that_help(installed):
    path, _ = installed

    with pytest.raises(CheckpointError, match=r"; use it with --quantizer fsq --hu_max 500.0$"):
        settings_of(path, quantizer="ema", num_embeddings=256, hu_max=1000.0)


def test_without_a_file_the_defaults_of_training_stand_until_weights_are_wanted(tmp_path):
    assert settings_of(tmp_path / "gone.pt", preset="lite") == DEFAULTS | {"preset": "lite"}


@pytest.mark.parametrize("words", [["--ckpt_file", "{}"], ["--ckpt_file={}"]])
def test_an_export_reads_the_file_that_it_exports(installed, tmp_path, monkeypatch, words):
    path, settings = installed
    words = [word.format(path) for word in words]

    monkeypatch.setattr("sys.argv", ["__main__.py", "ckpt_export", "--net_id", "network_def", *words])
    assert settings_of(tmp_path / "gone.pt") == settings
    monkeypatch.setattr("sys.argv", ["__main__.py", "run", *words])
    assert settings_of(tmp_path / "gone.pt") == DEFAULTS


def test_a_run_from_weights_takes_the_moments_along_and_learns_at_a_share_of_the_rate(
    base_checkpoint, tmp_path, tiny_vqgan, small_run
):
    path, saved = base_checkpoint[0], read_checkpoint(base_checkpoint[0])

    def run_of(start_arguments, **shape):
        run = small_run(tiny_vqgan(), iterations=1, weights=BASE, warmup=1, **shape)
        start = StartFrom(run.state, **start_arguments, init_from_learning_rate_ratio=0.1)
        start.attach(run.trainer)
        return run, start

    run, start = run_of({"init_from": path})
    assert run.optimizer.schedule.base_lrs == [pytest.approx(1e-5)]
    start(run.trainer, path)
    moments = run.optimizer.state_dict()["state"]
    for number, slot in saved["optimizers"]["generator"]["state"].items():
        torch.testing.assert_close(moments[number]["exp_avg"], slot["exp_avg"], rtol=0, atol=0)
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)

    run.trainer.state.epoch_length = 1
    write_checkpoint(tmp_path / "last.pt", run.state.state_dict(run.trainer))
    resumed, start = run_of({"resume_from_checkpoint": tmp_path / "last.pt"})
    start(resumed.trainer, tmp_path / "last.pt")
    assert resumed.optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)
    assert resumed.state.learning_rate_share == 0.1


def test_a_whole_learning_rate_share_can_be_read_again(tiny_vqgan, small_run, tmp_path):
    run = small_run(tiny_vqgan(), iterations=1, weights=BASE)
    run.state.scale_learning_rate(1)  # as `--init_from_learning_rate_ratio 1` gives it
    run.trainer.state.epoch_length = 1
    content = run.state.state_dict(run.trainer)
    write_checkpoint(tmp_path / "last.pt", content)
    written_before = content["trainer"] | {"learning_rate_share": 1}
    write_checkpoint(tmp_path / "older.pt", content | {"trainer": written_before})

    share = read_checkpoint(tmp_path / "last.pt")["trainer"]["learning_rate_share"]
    assert (type(share), share) == (float, 1.0)
    assert read_checkpoint(tmp_path / "older.pt")["trainer"]["learning_rate_share"] == 1


def test_an_installed_model_has_no_moments_to_take_along(tiny_vqgan, small_run, tmp_path, caplog):
    state = small_run(tiny_vqgan(), iterations=1, weights=BASE).state

    assert not state.take_moments({"model": {}})
    assert not state.take_moments({"model": {}, "optimizers": {"generator": {"state": [1]}}})
    assert not state.take_moments({"optimizers": {"generator": {"state": {0: {"exp_avg": torch.zeros(3)}}}}})
