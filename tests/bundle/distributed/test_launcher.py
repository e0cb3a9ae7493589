import socket
from datetime import timedelta

import pytest
import torch

from bundle.distributed.launcher import (
    Launched,
    LaunchError,
    idle_tasks_note,
    launched,
    local_device,
    refuse_misuse,
)
from bundle.distributed.ranks import (
    is_first,
    is_joined,
    join,
    launcher_store,
    rank,
    wait_for_ranks,
    world_size,
)
from bundle.run.rules import SettingsError
from tests.commands import free_port

LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
SLURM = ("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID")
TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
SRUN = {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "6", "SLURM_LOCALID": "2"}
# one task per node, each of them a torchrun
TORCHRUN_IN_SRUN = {**TORCHRUN, **SRUN, "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}


@pytest.fixture
def environment(monkeypatch):
    def set_to(values):
        for name in (*LAUNCHERS, *SLURM):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_to


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, Launched(0, 1, 0)),
        (TORCHRUN, Launched(5, 8, 1)),
        (SRUN, Launched(6, 8, 2)),
        (TORCHRUN_IN_SRUN, Launched(5, 8, 1)),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, Launched(0, 1, 0)),  # the batch script itself
    ],
)
def test_a_process_knows_its_number_from_its_launcher(environment, values, expected):
    environment(values)

    assert launched() == expected


def test_before_they_meet_the_first_process_is_first_and_works_alone(environment):
    environment({})
    assert is_first() and not is_joined() and (rank(), world_size()) == (0, 1)
    wait_for_ranks()
    environment(TORCHRUN)
    assert not is_first() and (rank(), world_size()) == (5, 1)


@pytest.mark.parametrize("joins", [False, True])
@pytest.mark.parametrize(
    ("values", "alone", "joined"),
    [
        ({}, None, None),
        (TORCHRUN, "8 processes were started, but", None),
        (SRUN, "8 processes were started, but", None),
        ({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, None, None),
        ({"SLURM_NTASKS": "8"}, None, None),
        ({"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"}, None, None),
    ],
)
def test_processes_that_would_all_do_the_same_are_refused(environment, values, alone, joined, joins):
    environment(values)
    message = joined if joins else alone
    if message is None:
        refuse_misuse(joins)
    else:
        with pytest.raises(LaunchError, match=message):
            refuse_misuse(joins)


def test_the_refusal_names_the_config_that_would_help(environment):
    environment(TORCHRUN)
    with pytest.raises(LaunchError, match="list configs/multi_gpu_train.yaml too, or start one process"):
        refuse_misuse(False, "configs/multi_gpu_train.yaml")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {**TORCHRUN, "WORLD_SIZE": "eight"},
            "`WORLD_SIZE` must be a whole number from 0, got 'eight'; start",
        ),
        ({**TORCHRUN, "LOCAL_RANK": "1e3"}, "`LOCAL_RANK` must be a whole number from 0, got '1e3'"),
        ({**TORCHRUN, "WORLD_SIZE": "٨"}, "`WORLD_SIZE` must be a whole number from 0"),
        ({**TORCHRUN, "RANK": "8"}, "`RANK` must be below `WORLD_SIZE`, got 8 and 8; start"),
        ({"WORLD_SIZE": "2"}, "`RANK` must be below `WORLD_SIZE`, got none and 2"),
        ({"WORLD_SIZE": "0"}, "`RANK` must be below `WORLD_SIZE`, got none and 0"),
        ({**SRUN, "SLURM_PROCID": "\x1b[31m-1"}, r"`SLURM_PROCID` must be a whole number from 0, got '\\x1b"),
        ({**SRUN, "SLURM_PROCID": "8"}, "`SLURM_PROCID` must be below `SLURM_STEP_NUM_TASKS`, got 8 and 8"),
        (
            {"SLURM_STEP_NUM_TASKS": "9" * 5000},
            "`SLURM_STEP_NUM_TASKS` must be a whole number from 0, got '9",
        ),
    ],
)
def test_what_no_launcher_writes_is_refused_before_each_process_takes_itself_for_the_first(
    environment, values, message
):
    environment(values)
    launched()
    with pytest.raises(LaunchError, match=message):
        refuse_misuse(True)


@pytest.mark.parametrize("port", ["here", "0", "65536", "-1", "٣", "", "9" * 5000])
def test_a_port_that_is_none_is_refused(environment, monkeypatch, port):
    environment({**TORCHRUN, "RANK": "0"})
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(LaunchError, match="`MASTER_PORT` must be a port from 1 to 65535, got '"):
        launcher_store(timedelta(seconds=1))


def test_jobs_that_share_a_port_by_mistake_do_not_read_each_others_words(environment, monkeypatch):
    port, stores = free_port(), []
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    for job, number in (("7", "0"), ("7", "1"), ("8", "1")):
        environment({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": number})
        monkeypatch.setenv("SLURM_JOB_ID", job)
        stores.append(launcher_store(timedelta(seconds=10)))
    stores[0].set("word", "mine")

    assert [store.check(["word"]) for store in stores] == [True, True, False]


def test_a_port_that_another_program_has_is_told_with_what_to_look_at(environment, monkeypatch):
    environment({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"})
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(other.getsockname()[1]))
        with pytest.raises(LaunchError, match="the 2 processes did not meet .*; .* MASTER_PORT"):
            join("cpu", rank_timeout_s=1)
    assert not is_joined()


@pytest.mark.parametrize(
    ("values", "gpus", "expected"),
    [
        ({}, 2, "cuda:0"),
        (TORCHRUN, 0, "cpu"),
        (TORCHRUN, 4, "cuda:1"),
        (SRUN, 4, "cuda:2"),
        (SRUN, 1, "cuda:0"),  # --gpus-per-task=1
        (TORCHRUN, 1, None),
        (SRUN, 2, None),
    ],
)
def test_every_process_gets_a_gpu_of_its_own_or_a_refusal(environment, monkeypatch, values, gpus, expected):
    environment(values)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    if expected is None:
        with pytest.raises(SettingsError, match=f"start at most {gpus} there"):
            local_device()
    else:
        assert local_device() == torch.device(expected)


@pytest.mark.parametrize(
    ("values", "is_told"),
    [({}, False), ({"SLURM_NTASKS": "8"}, True), (SRUN, False), (TORCHRUN_IN_SRUN, False)],
)
def test_tasks_of_a_job_that_do_nothing_are_told_and_refuse_nothing(environment, values, is_told):
    environment(values)

    assert ("8 tasks, but one process" in idle_tasks_note(False)) == is_told
    assert ("start it with srun or torchrun" in idle_tasks_note(True)) == is_told
