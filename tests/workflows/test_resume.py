"""Runs that are killed or stopped and go on by `--resume_from_checkpoint auto`, against one left alone."""

import csv
import json
import signal

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

# Across the gate, with two validations and checkpoints before, between and behind them: after the iterations
# 3, 6 and 8 the last, after 4 and 8 the best.
SETTINGS = {
    "epoch_length": 4,
    "max_epochs": 2,
    "batch_size": 1,
    "micro_batch_size": 1,
    "checkpoint_interval": 3,
    "log_interval": 3,
    "discriminator_iter_start": 4,
    "video_gan_weight": 0,
    "resume_from_checkpoint": "auto",
}


def content_of(folder):
    path = folder / "checkpoints" / "last.pt"
    return torch.load(path, weights_only=True)


def table_of(folder):
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def points_of(folder):
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {
        tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def record_of(folder):
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def best_of(folder):
    paths = sorted((folder / "checkpoints").glob("best_*.pt"))
    contents = [torch.load(path, weights_only=True) for path in paths]
    return [(content["trainer"]["iteration"], content["figures"]) for content in contents]


@pytest.fixture(scope="module")
def start(python, dataset, tmp_path_factory):
    """Starts a run in a folder, to be ended by a signal at a moment, or not."""

    def start(folder, moment=None, count=1, number=signal.SIGKILL):
        files = ["configs/train.yaml", "configs/train_with_discriminator.yaml", "configs/smoke.yaml"]
        if moment is not None:
            armed = {"_target_": "tests.workflows.killing.arm", "moment": moment, "count": count}
            overlay = tmp_path_factory.mktemp("overlay") / "killing.json"
            overlay.write_text(json.dumps({"+initialize": [{**armed, "number": int(number)}]}))
            files.append(str(overlay))
        words = ["run", "--config_file", str(files), "--num_embeddings", "64", "--patch_size", "[24, 24, 24]"]
        for name, value in (SETTINGS | {"dataset_dir": dataset, "output_dir": folder}).items():
            words += [f"--{name}", str(value)]
        return python("monai.bundle", *words)

    return start


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """The run that nothing interrupts; `auto` finds nothing to resume and says so."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    start(folder).expect_success()
    return folder


def assert_same_run(folder, whole):
    """Weights, moments, counters, curves and ranking are those of the uninterrupted run."""
    found, expected = content_of(folder), content_of(whole)
    for part in ("model", "discriminators", "optimizers", "schedules", "trainer"):
        torch.testing.assert_close(found[part], expected[part], rtol=0, atol=0)
    assert table_of(folder) == table_of(whole)
    assert points_of(folder) == points_of(whole)
    assert best_of(folder) == best_of(whole)
    assert record_of(folder)["figures"] == record_of(whole)["figures"]
    assert not [path.name for path in (folder / "checkpoints").iterdir() if "unfinished" in path.name]


def test_auto_starts_at_zero_where_there_is_nothing_to_resume(whole):
    log = (whole / "training.log").read_text(encoding="utf-8")
    assert "No checkpoint to resume yet: this run starts at iteration 0" in log
    assert [row["iteration"] for row in table_of(whole) if row["val/psnr"]] == ["4", "8"]
    names = sorted(path.name for path in (whole / "checkpoints").iterdir())
    assert names == ["best_1.pt", "best_2.pt", "last.pt", "previous_1.pt"]


def test_a_run_killed_in_a_write_in_a_validation_and_between_renames_ends_as_if_it_had_not_been(
    start, whole, tmp_path
):
    folder = tmp_path / "run"
    for moment, count in (("writing", 2), ("validating", 1), ("renaming", 3)):
        assert start(folder, moment, count).code == -signal.SIGKILL
    start(folder).expect_success()
    assert_same_run(folder, whole)
    assert len(record_of(folder)["earlier_starts"]) == 3


@pytest.mark.slow
def test_a_run_stopped_in_a_validation_then_by_ctrl_c_in_a_write_then_damaged_ends_as_if_it_had_not_been(
    start, whole, tmp_path
):
    folder = tmp_path / "run"
    last = folder / "checkpoints" / "last.pt"

    done = start(folder, "validating", 1, signal.SIGTERM)
    assert done.code == 128 + signal.SIGTERM, done.output[-3000:]
    assert "Traceback" not in done.output
    assert record_of(folder)["status"] == "stopped"
    assert content_of(folder)["trainer"]["iteration"] == 4  # saved for the signal; 3 was the last before it
    assert not [row for row in table_of(folder) if row["val/psnr"]]

    done = start(folder, "writing", 2, signal.SIGINT)  # first the best of the validation that was repeated
    assert done.code == 128 + signal.SIGINT, done.output[-3000:]
    assert "Traceback" not in done.output
    assert content_of(folder)["trainer"]["iteration"] == 7  # the one that was under way

    damaged = bytearray(last.read_bytes())
    damaged[len(damaged) // 3] ^= 1
    last.write_bytes(damaged)
    start(folder).expect_success()
    log = (folder / "training.log").read_text(encoding="utf-8")
    assert f"Resuming {last.with_name('previous_1.pt')} at iteration 6" in log
    assert f"{last} is damaged or of a later iteration; it is now last.pt.set_aside" in log
    assert_same_run(folder, whole)
