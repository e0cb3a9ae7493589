"""Ranks that are killed, stopped, refused or restarted: `make test-ranks`."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.commands import ENVIRONMENT, ROOT
from tests.workflows.torchrun import torchrun

pytestmark = pytest.mark.ranks
LENGTH = {"epoch_length": 6, "checkpoint_interval": 2}
LOST = "another process of this run has ended or does not answer"
RESTARTS = Path(__file__).with_name("restarting.py")


def armed(moment, count, number=signal.SIGKILL, rank=None, times=1):
    settings = {"moment": moment, "count": count, "number": int(number), "rank": rank, "times": times}
    return {"+initialize": [{"_target_": "tests.workflows.killing.arm", **settings}]}


def record_of(folder):
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def iteration_of(folder):
    return torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["trainer"]["iteration"]


@pytest.fixture
def start(start_on_ranks, datalist, out):
    """Starts a base run of two ranks, with one validation volume, in `out`."""

    def start(*overlays, **settings):
        settings = {"dataset_dir": datalist(1)} | LENGTH | settings
        return start_on_ranks("base", 2, out, *overlays, **settings)

    return start


@pytest.mark.parametrize("killed", [0, 1])
def test_the_death_of_a_rank_ends_the_other_within_seconds_and_in_words(start, out, killed):
    begin = time.monotonic()
    ended = start(armed("stepping", 3, rank=killed))

    assert time.monotonic() - begin < 120
    assert ended[killed].code == -signal.SIGKILL
    assert ended[1 - killed].code == 1 and LOST in ended[1 - killed].last_line
    assert "Traceback" not in ended[1 - killed].output
    assert record_of(out)["status"] == ("failed" if killed == 1 else "running")
    assert iteration_of(out) == 2


@pytest.mark.parametrize("rank", [None, 0, 1])
def test_a_signal_stops_all_ranks_at_one_iteration_whichever_gets_it_and_even_if_it_comes_twice(
    start, out, rank
):
    ended = start(armed("stepping", 3, signal.SIGTERM, rank, times=2))

    assert [one.code for one in ended] == [128 + signal.SIGTERM] * 2, ended[0].output[-3000:]
    assert record_of(out)["status"] == "stopped"
    assert iteration_of(out) == 3
    assert not any("Traceback" in one.output for one in ended)


@pytest.mark.parametrize("rank", [None, 0, 1])
def test_a_stop_in_a_validation_ends_it_on_all_ranks_and_the_run_goes_on_from_there(start, out, rank):
    ended = start(armed("encoding", 1, signal.SIGTERM, rank))

    assert [one.code for one in ended] == [128 + signal.SIGTERM] * 2, ended[0].output[-3000:]
    assert record_of(out)["status"] == "stopped"
    assert not list(out.glob("checkpoints/best_*.pt")) and iteration_of(out) == 6
    for one in start(resume_from_checkpoint="auto"):
        one.expect_success()
    assert (out / "checkpoints" / "best_1.pt").is_file()


def test_a_setting_that_only_rank_1_cannot_take_ends_both_before_anything_is_written(start, out):
    wrong = {"r1_gamma": "$'x' if torch.os.environ['RANK'] == '1' else 0.0"}
    ended = start(wrong, rank_timeout_s=10)

    assert [one.code for one in ended] == [1, 1]
    assert "rank 1: `r1_gamma` must be a number" in ended[1].last_line
    assert "the 2 processes did not meet" in ended[0].last_line
    assert not out.exists()


def test_a_preflight_error_of_rank_1_ends_both_in_one_line_of_rank_0(start, out, tmp_path):
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    place = f"$'{file}/cache' if torch.os.environ.get('RANK') == '1' else '{tmp_path}/cache'"
    ended = start({"run::4::output_dir": place})

    assert [one.code for one in ended] == [1, 1]
    assert f"error: output: {file}: is a file; give another --output_dir (rank 1)" in ended[0].last_line
    assert "error: " not in ended[1].output
    assert not out.exists()


def test_a_full_disk_of_rank_0_ends_both_and_what_was_written_is_whole(start, out):
    limit = {"+initialize": [{"_target_": "tests.workflows.killing.limit_files", "size": 30_000}]}
    ended = start(limit)

    assert [one.code for one in ended] == [1, 1]
    assert "cannot be written" in ended[0].last_line and "make room" in ended[0].last_line
    assert LOST in ended[1].last_line


def test_an_error_of_rank_1_reaches_the_record_and_is_what_rank_0_tells(start, out):
    fail = {"_target_": "tests.workflows.killing.fail", "moment": "stepping", "count": 2, "rank": 1}
    ended = start({"+initialize": [fail]})

    assert [one.code for one in ended] == [1, 1]
    assert "rank 1: out of memory" in ended[1].last_line
    assert "rank 1: out of memory" in ended[0].last_line
    assert record_of(out)["status"] == "failed" and "rank 1: out of memory" in record_of(out)["error"]


def test_where_one_rank_runs_out_of_memory_all_halve_their_micro_batch(start, out):
    fail = {"_target_": "tests.workflows.killing.fail", "moment": "reconstructing", "count": 3, "rank": 1}
    for one in start({"+initialize": [fail]}, oom_policy="degrade", micro_batch_size=2):
        one.expect_success()

    events = record_of(out)["events"]
    assert [(event["kind"], event["iteration"]) for event in events] == [("out_of_memory", 3)]
    states = [torch.load(out / f"rank_{rank}.pt", weights_only=True) for rank in range(2)]
    assert [state["extras"]["memory_fallback"]["halvings"] for state in states] == [1, 1]
    models = [state["model"] for state in states]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_a_second_job_in_the_folder_is_refused_by_the_lock_on_all_ranks(start, out):
    out.mkdir()
    holder = "import sys; from pathlib import Path; from bundle.run.lock import lock_folder\n"
    holder += "lock_folder(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", holder, out], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    try:
        ended = start()
    finally:
        process.communicate()

    assert [one.code for one in ended] == [1, 1]
    assert "is writing there; wait until it ends" in ended[0].last_line
    assert "error: " not in ended[1].output


def test_ten_restarts_in_a_row_meet_again(tmp_path):
    done = subprocess.run(
        torchrun(RESTARTS, tmp_path, restarts=10),
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        timeout=1800,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"met_{attempt:02d}" for attempt in range(11)]


def test_a_signal_to_torchrun_stops_the_run_and_auto_goes_on(dataset, out):
    files = ["configs/train.yaml", "configs/smoke.yaml", "configs/multi_gpu_train.yaml"]
    settings = {"dataset_dir": dataset, "output_dir": out, "num_embeddings": 64, "log_interval": 1}
    settings |= {"patch_size": [16, 16, 16], "max_epochs": 1, "epoch_length": 300}
    settings |= {"resume_from_checkpoint": "auto"}
    words = ["-m", "monai.bundle", "run", "--config_file", str(files)]
    for name, value in settings.items():
        words += [f"--{name}", str(value)]
    process = subprocess.Popen(torchrun(*words), cwd=ROOT, env=ENVIRONMENT)
    wait_for(out / "metrics.csv", process)
    process.send_signal(signal.SIGTERM)

    assert process.wait(120) != 0
    assert record_of(out)["status"] == "stopped"
    stopped = iteration_of(out)
    assert stopped >= 1
    done = subprocess.run(torchrun(*words, "--max_iterations", stopped + 2), cwd=ROOT, env=ENVIRONMENT)
    assert done.returncode == 0 and iteration_of(out) == stopped + 2


def wait_for(path, process, limit_s=300.0):
    end = time.monotonic() + limit_s
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.2)
