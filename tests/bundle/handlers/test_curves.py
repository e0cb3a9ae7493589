import csv
import logging
import math
import os

import pytest
import torch
from ignite.engine import Engine, Events
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bundle.handlers.codebook_window import CodebookWindow
from bundle.handlers.curve_table import TAGS
from bundle.handlers.curves import LogFolderError, ScalarLog, TensorBoardLog
from bundle.networks.quantizer import CodeCounts, EMACodebook

BASE_TAGS = {"train/recon_loss", "train/commitment_loss", "train/learning_rate"}
CODEBOOK_TAGS = {"codebook/usage", "codebook/perplexity", "codebook/restarts"}
ADVERSARIAL_TAGS = {"train/gen_loss", "train/disc_loss", "train/gan_feat_loss"}


def curves(folder):
    """{tag: {iteration: value}} as TensorBoard reads it."""
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {
        tag: {point.step: point.value for point in events.Scalars(tag)} for tag in events.Tags()["scalars"]
    }


def rows(folder):
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def validator_of(figures):
    validator = Engine(lambda *_: None)
    validator.add_event_handler(
        Events.EPOCH_COMPLETED, lambda engine: engine.state.metrics.update(figures | {"key": 1.0})
    )
    return validator


@pytest.fixture
def logged(tmp_path, tiny_vqgan, small_run):
    """Makes a run with curves of every 2 iterations, and the losses of every iteration by name."""

    def make(iterations, start=3, weights=(1.0, 0.0, 4.0), validator=None, progress=False, **shape):
        def handlers(run):
            log = TensorBoardLog(tmp_path)
            return [ScalarLog(log, tmp_path, 2, run.optimizer, progress)]

        shape |= {"start": start, "weights": weights, "validator": validator, "handlers": handlers}
        run = small_run(tiny_vqgan(), iterations, **shape)
        losses = {}

        @run.trainer.on(Events.ITERATION_COMPLETED)
        def remember(engine):
            for name, value in engine.current.losses.items():
                losses.setdefault(f"train/{name}", {})[engine.state.iteration] = float(value)

        return run, losses

    return make


def test_points_are_means_over_the_interval_and_absent_below_the_gate(tmp_path, logged):
    run, losses = logged(5)
    run.run()
    found = curves(tmp_path)
    assert set(found) == BASE_TAGS | CODEBOOK_TAGS | ADVERSARIAL_TAGS
    for tag, points in found.items():
        if tag in ADVERSARIAL_TAGS:  # the gate opens at iteration 4
            expected = {4: losses[tag][4], 5: losses[tag][5]}
        elif tag in losses:
            one = losses[tag]
            expected = {2: (one[1] + one[2]) / 2, 4: (one[3] + one[4]) / 2, 5: one[5]}
        else:
            assert set(points) == {2, 4, 5}
            continue
        assert points == pytest.approx(expected, rel=1e-5)


def test_the_table_has_a_column_per_curve_and_a_row_per_point(tmp_path, logged):
    run, losses = logged(4)
    run.run()
    table = rows(tmp_path)
    assert list(table[0]) == ["iteration", "epoch", *TAGS]
    assert [(row["iteration"], row["epoch"]) for row in table] == [("2", "1"), ("4", "1")]
    assert {tag for tag in TAGS if table[0][tag]} == BASE_TAGS | CODEBOOK_TAGS
    assert {tag for tag in TAGS if table[1][tag]} == BASE_TAGS | CODEBOOK_TAGS | ADVERSARIAL_TAGS
    assert float(table[1]["train/disc_loss"]) == pytest.approx(losses["train/disc_loss"][4])


def test_validation_figures_are_logged_at_the_trainer_s_iteration(tmp_path, logged):
    validator = validator_of({"val/psnr": 21.5, "val/ssim": 0.5})
    run, _ = logged(2, weights=(0, 0, 0), validator=validator)
    run.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: validator.run([0, 0, 0]))
    run.run()
    found = curves(tmp_path)
    assert (found["val/psnr"], found["val/ssim"]) == ({2: 21.5}, {2: 0.5})
    assert "key" not in found and "val/lpips" not in found
    assert [row["val/psnr"] for row in rows(tmp_path)] == ["", "21.5"]


def test_the_last_value_of_every_curve_is_kept_for_the_run_s_record(logged):
    run, losses = logged(3, weights=(0, 0, 0))
    run.run()
    figures = run.trainer.state.figures
    assert set(figures) == BASE_TAGS | CODEBOOK_TAGS | {"iteration"}
    assert figures["iteration"] == 3
    assert figures["train/recon_loss"] == pytest.approx(losses["train/recon_loss"][3])


def test_the_learning_rate_is_the_generator_s(tmp_path, logged):
    run, _ = logged(2, weights=(0, 0, 0))
    run.run()
    assert curves(tmp_path)["train/learning_rate"] == pytest.approx({2: 1e-4})


def test_a_resumed_run_takes_back_the_points_that_it_comes_by_again(tmp_path, logged):
    first, _ = logged(6, weights=(0, 0, 0))
    first.run()
    second, losses = logged(8, weights=(0, 0, 0))
    second.trainer.state.iteration = second.sampler.start_iteration = 4
    second.run()
    assert [int(row["iteration"]) for row in rows(tmp_path)] == [2, 4, 6, 8]
    points = curves(tmp_path)["train/recon_loss"]
    again = losses["train/recon_loss"]
    assert list(points) == [2, 4, 6, 8]
    assert points[6] == pytest.approx((again[5] + again[6]) / 2, rel=1e-5)


def test_a_fresh_run_takes_back_all_that_a_failed_one_left(tmp_path, logged):
    for _ in range(2):
        run, _ = logged(2, weights=(0, 0, 0))
        run.run()
    assert [int(row["iteration"]) for row in rows(tmp_path)] == [2]


def test_nothing_is_written_before_the_first_point(tmp_path, logged):
    run, _ = logged(2, weights=(0, 0, 0))
    written = []
    run.trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=1), lambda: written.extend(tmp_path.iterdir())
    )
    run.run()
    assert written == []
    assert list(tmp_path.iterdir()) != []


def test_every_point_is_a_line_of_the_log(logged, caplog):
    run, _ = logged(2, weights=(0, 0, 0))
    with caplog.at_level(logging.INFO, "bundle.handlers.curves"):
        run.run()
    assert "epoch 1 iteration 2  train/recon_loss 0." in caplog.text


def test_without_a_terminal_there_is_no_bar_but_a_line_for_the_first_iteration(logged, capfd, caplog):
    run, _ = logged(3, weights=(0, 0, 0), progress=True)
    with caplog.at_level(logging.INFO, "bundle.handlers.curves"):
        run.run()

    assert capfd.readouterr().err == ""
    told = [message for message in caplog.messages if "iteration" in message]
    assert told[0].startswith("epoch 1 iteration 1 is done, the first of this start")
    assert [message[:19] for message in told[1:]] == ["epoch 1 iteration 2", "epoch 1 iteration 3"]


def test_the_progress_bar_shows_loss_and_psnr_once_they_are_known(tmp_path, logged, capfd, monkeypatch):
    monkeypatch.setattr("bundle.handlers.curves.has_terminal", lambda: True)
    validator = validator_of({"val/psnr": 21.5})
    run, _ = logged(2, weights=(0, 0, 0), max_epochs=2, validator=validator, progress=True)
    run.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: validator.run([0]))
    run.run()
    shown = capfd.readouterr().err
    assert "training" in shown and "recon_loss=0." in shown and "val_psnr=21.5" in shown
    assert "nan" not in shown


def test_the_codebook_s_health_is_that_of_the_whole_window():
    codebook, window = EMACodebook(8, 2).train(), CodebookWindow()
    for codes in (torch.tensor([0, 0, 1, 1]), torch.tensor([2, 2, 3, 3])):
        restarts = torch.tensor(len(codes) - 1.0 - float(codes[0]))
        codebook._counts = CodeCounts(torch.bincount(codes, minlength=8).float(), restarts)
        window.add(codebook)
    figures = window.figures()
    assert figures == pytest.approx(
        {"codebook/usage": 0.5, "codebook/perplexity": 4.0, "codebook/restarts": 2.0}
    )
    assert window.figures() == {}


def test_perplexity_of_unequal_use_is_the_exponential_of_its_entropy():
    codebook, window = EMACodebook(4, 2), CodebookWindow()
    codebook._counts = CodeCounts(torch.tensor([3.0, 1.0, 0.0, 0.0]), torch.tensor(0))
    window.add(codebook)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert window.figures()["codebook/perplexity"] == pytest.approx(math.exp(entropy))


def test_a_codebook_that_was_never_updated_has_no_health():
    window = CodebookWindow()
    window.add(EMACodebook(4, 2))
    assert window.figures() == {}


@pytest.mark.parametrize("is_locked", [False, True], ids=["a file", "a locked folder"])
def test_a_folder_that_cannot_take_the_curves_is_told_before_training(
    tmp_path, logged, monkeypatch, is_locked
):
    folder = tmp_path / "tensorboard"
    if is_locked:
        folder.mkdir()
        monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    else:
        folder.write_bytes(b"")
    run, losses = logged(2, weights=(0, 0, 0))
    with pytest.raises(LogFolderError, match=rf"{folder}: must be a folder that can be written; remove it"):
        run.run()
    assert losses == {}


def test_an_interval_below_one_iteration_is_refused(tmp_path):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    with pytest.raises(ValueError, match="`log_interval` must be a whole number from 1, got 0"):
        ScalarLog(TensorBoardLog(tmp_path), tmp_path, 0, optimizer)
