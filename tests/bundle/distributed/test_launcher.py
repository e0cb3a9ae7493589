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
from bundle.distributed.ranks import is_first, is_joined, rank, wait_for_ranks, world_size
from bundle.run.rules import SettingsError

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
