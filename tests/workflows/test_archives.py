"""Whole archives: shards, what is there already, bad volumes, and processes that share a queue."""

import csv
import json
import os
import re

import numpy as np
import pytest

from bundle.checkpoints.file import network_settings, write_checkpoint
from bundle.data.volumes.phantom import write_phantom
from bundle.networks.vqgan import build_vqgan
from bundle.run.lock import lock_folder, release_folder

N_VOLUMES, BAD, CODES = 5, 2, 64
GOOD = [number for number in range(N_VOLUMES) if number != BAD]
REASON = "is truncated: its header declares"


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Volumes of five patients, one of them cut short."""
    folder = tmp_path_factory.mktemp("archive")
    for number in range(N_VOLUMES):
        write_phantom(folder / f"p{number}" / "ct.nii.gz", (28, 28, 24), np.eye(4), seed=number)
    bad = folder / f"p{BAD}" / "ct.nii.gz"
    bad.write_bytes(bad.read_bytes()[:500])
    return folder


@pytest.fixture(scope="module")
def alone(python, scans, checkpoint, tmp_path_factory):
    """What one process makes of them, and how it ended."""
    folder = tmp_path_factory.mktemp("alone")
    ended = python.run("encode", on_error="skip", **settings_of(scans, checkpoint, folder))
    return folder, ended


@pytest.fixture(scope="module")
def together(python, scans, checkpoint, tmp_path_factory):
    """What two processes make of them that share a queue, and how they ended."""
    folder = tmp_path_factory.mktemp("together")
    files = ["configs/encode.yaml", "configs/multi_gpu_encode.yaml", "configs/smoke.yaml"]
    settings = settings_of(scans, checkpoint, folder) | {"on_error": "skip", "num_workers": 1}
    settings |= {"num_embeddings": CODES}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return folder, python.on_ranks(2, "monai.bundle", "run", "--config_file", str(files), *words)


def settings_of(scans, checkpoint, folder):
    return {"dataset_dir": scans, "ckpt_path": checkpoint, "output_dir": folder}


def codes_in(folder):
    return {path.parent.name: path.read_bytes() for path in folder.glob("p*/ct_codes.npz")}


def record_of(folder, name="run.json"):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def counts(folder, name="run.json"):
    return {key: value for key, value in record_of(folder, name)["figures"].items() if key != "seconds"}


def log_of(folder, name="encode.log"):
    return (folder / name).read_text(encoding="utf-8")


def test_a_bad_volume_is_skipped_named_and_counted_and_the_exit_code_tells(alone, scans):
    folder, ended = alone

    assert ended.code == 3, ended.output[-3000:]
    assert "Traceback" not in ended.output
    assert sorted(codes_in(folder)) == [f"p{number}" for number in GOOD]
    assert counts(folder) == {"volumes": 5, "written": 4, "existing": 0, "skipped": 1}
    rows = list(csv.DictReader((folder / "skipped.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["volume"] for row in rows] == [str(scans / f"p{BAD}" / "ct.nii.gz")]
    assert rows[0]["reason"].startswith(REASON)
    assert "5 of 5 volumes: 4 written, 0 there before, 1 skipped; about 0:00:00 left" in log_of(folder)


@pytest.mark.slow
def test_shards_make_together_what_one_process_makes_each_in_a_log_of_its_own(
    python, scans, checkpoint, alone, out
):
    settings = settings_of(scans, checkpoint, out) | {"on_error": "skip", "shard_count": 2}

    codes = [python.run("encode", shard_index=index, **settings).code for index in range(2)]

    assert codes == [3, 0]
    assert codes_in(out) == codes_in(alone[0])
    names = [f"run_shard_{index}_of_2.json" for index in range(2)]
    assert [counts(out, name)["written"] for name in names] == [2, 2]
    files = {path.name for path in out.iterdir() if path.is_file()}
    logs = {f"encode_shard_{index}_of_2.log" for index in range(2)}
    assert files == {*names, *logs, "skipped_shard_0_of_2.csv"}


def test_the_same_shard_twice_is_refused_and_another_one_is_welcome(python, scans, checkpoint, out):
    out.mkdir()
    lock_folder(out, "shard_1_of_3")
    settings = settings_of(scans, checkpoint, out) | {"on_error": "skip", "shard_count": 3}
    try:
        refused = python.run("encode", shard_index=1, **settings)
        left = sorted(path.name for path in out.iterdir())
        other = python.run("encode", shard_index=0, **settings)
    finally:
        release_folder(out, "shard_1_of_3")

    assert refused.code == 1 and "Traceback" not in refused.output
    assert refused.last_line.startswith(f"error: {out}: process {os.getpid()} on ")
    assert "is writing shard 1 of 3 there; wait until it ends" in refused.last_line
    assert left == [".lock_shard_1_of_3"]
    other.expect_success()


@pytest.mark.parametrize("workflow", [pytest.param("encode", marks=pytest.mark.slow), "inference"])
def test_a_second_run_makes_what_is_missing_and_what_another_model_has_made(
    python, scans, checkpoint, other_checkpoint, out, workflow
):
    settings = {"on_error": "skip", "skip_existing": "true", "output_dir": out, "dataset_dir": scans}
    result = out / "p0" / {"encode": "ct_codes.npz", "inference": "ct_recon.nii.gz"}[workflow]

    python.run(workflow, ckpt_path=checkpoint, **settings)
    first = result.read_bytes()
    (out / "p1" / result.name).unlink()
    python.run(workflow, ckpt_path=checkpoint, **settings)
    again = counts(out)
    python.run(workflow, ckpt_path=other_checkpoint, **settings)

    assert again == {"volumes": 5, "written": 1, "existing": 3, "skipped": 1}
    assert counts(out) == {"volumes": 5, "written": 4, "existing": 0, "skipped": 1}
    assert result.read_bytes() != first
    assert len(record_of(out)["earlier_starts"]) == 2
    assert log_of(out, f"{workflow}.log").count("queue: 5 volumes: ") == 3  # each run adds to the log


@pytest.fixture(scope="module")
def other_checkpoint(network, tmp_path_factory):
    """The same network with other weights."""
    path = tmp_path_factory.mktemp("other") / "model.pt"
    other = build_vqgan("lite", "ema", CODES)
    other.load_state_dict(network.state_dict())
    for name, parameter in other.named_parameters():
        parameter.data.mul_(0.9 if name.startswith("decoder") else 1.1)
    settings = network_settings("lite", "ema", CODES, -1000, 1000)
    write_checkpoint(path, {"model": other.state_dict(), "network": settings})
    return path


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shard_index": 4, "shard_count": 4}, "`shard_index` must be below `shard_count`, got 4 and 4"),
        ({"shard_count": 0}, "`shard_count` must be a whole number from 1, got 0"),
        ({"on_error": "ignore"}, "`on_error` must be one of stop, skip, got 'ignore'"),
    ],
)
def test_a_shard_that_does_not_exist_and_a_wrong_word_are_refused(
    python, scans, checkpoint, out, settings, message
):
    ended = python.run("encode", **settings_of(scans, checkpoint, out), **settings)

    ended.expect_refusal(message, output_dir=out)


def test_a_full_disk_stops_the_run_instead_of_skipping_everything(python, dataset, checkpoint, out, tmp_path):
    overlay = tmp_path / "overlay.json"
    step = {"_target_": "tests.workflows.killing.limit_files", "size": 20_000}
    overlay.write_text(json.dumps({"+initialize": [step]}), encoding="utf-8")
    settings = settings_of(dataset, checkpoint, out) | {"on_error": "skip", "keep_latents": "true"}

    ended = python.run("encode", str(overlay), **settings)

    assert ended.code == 1 and "Traceback" not in ended.output, ended.output[-3000:]
    assert ended.last_line.startswith(f"error: {out}/p0/ct_codes.npz: cannot be written (File too large)")
    assert record_of(out)["status"] == "failed"
    assert not (out / "skipped.csv").exists() and codes_in(out) == {}


def test_two_processes_make_what_one_makes_each_volume_once(together, alone):
    folder, ended = together
    logs = log_of(folder) + log_of(folder, "encode_rank_1.log")

    assert codes_in(folder) == codes_in(alone[0]), ended[0].output[-3000:]
    written = re.findall(r"wrote \S*/(p\d)/ct_codes.npz", logs)
    assert sorted(written) == [f"p{number}" for number in GOOD]


def test_two_processes_have_one_summary_one_list_and_one_progress(together, alone):
    folder, ended = together
    totals = {"volumes": 5, "written": 4, "existing": 0, "skipped": 1}

    assert counts(folder) == totals
    assert record_of(folder)["status"] == record_of(folder, "run_rank_1.json")["status"] == "finished"
    assert counts(folder, "run_rank_1.json").keys() == {"written", "existing", "skipped"}
    lists = [(path / "skipped.csv").read_text(encoding="utf-8") for path in (folder, alone[0])]
    assert lists[0] == lists[1]
    logs = log_of(folder) + log_of(folder, "encode_rank_1.log")
    assert sorted(re.findall(r"(\d) of 5 volumes: ", logs))[-1] == "5"
    assert [one.code for one in ended] == [3, 0]


def test_processes_started_together_need_the_overlay_or_shards(python, scans, checkpoint, out):
    files = str(["configs/encode.yaml", "configs/smoke.yaml"])
    settings = settings_of(scans, checkpoint, out) | {"num_embeddings": CODES}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]

    run = ("monai.bundle", "run", "--config_file", files, *words)
    refused = python(*run, WORLD_SIZE="2", RANK="1")
    refused.expect_refusal("list configs/multi_gpu_encode.yaml too, or start one process", output_dir=out)

    shard = ("--shard_count", "5", "--on_error", "skip")
    python(*run, *shard, SLURM_STEP_NUM_TASKS="2", SLURM_PROCID="1").expect_success()
