"""Tells which process of a launcher this is: of torchrun, or of srun if there is no torchrun."""

import os
from typing import NamedTuple

import torch

from bundle.run.names import shown
from bundle.run.rules import SettingsError

# Variables in which launchers tell a process its number, how many there are, and its number on its machine.
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
MAX_DIGITS = 9


class LaunchError(ValueError):
    """Processes that were started together but do not work together; the message says what to do."""


class Launched(NamedTuple):
    """The place of this process among those of its launcher.

    Attributes:
        rank: its number among all, from 0.
        size: how many there are; 1 without a launcher.
        local_rank: its number on its machine, from 0.
    """

    rank: int
    size: int
    local_rank: int


def launched() -> Launched:
    """Returns what the launcher says; without a launcher there is one process, with `srun` one per task."""
    if "WORLD_SIZE" in os.environ:
        names = TORCHRUN
    elif _number("SLURM_STEP_NUM_TASKS", 1) > 1:  # set only inside of srun
        names = SRUN
    else:
        return Launched(0, 1, 0)
    rank, size, local_rank = map(_number, names, (0, 1, 0))
    return Launched(rank, size, local_rank)


def local_device() -> torch.device:
    """Returns this process's GPU: the one with its local number, or the only one; else the CPU.

    Raises:
        SettingsError: if there are fewer GPUs than processes.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    number, seen = launched().local_rank, torch.cuda.device_count()
    # Under srun --gpus-per-task=1 every process sees its own GPU as number 0; torchrun shows all to all.
    if seen == 1 and "LOCAL_WORLD_SIZE" not in os.environ:
        number = 0
    if number >= seen:
        raise SettingsError(
            f"`device` must be a GPU of its own for every process, got process {number} of a machine where "
            f"torch sees {seen}; start at most {seen} there (--nproc_per_node {seen}), or give --device cpu"
        )
    return torch.device("cuda", number)


def refuse_misuse(joins: bool, overlay: str | None = None) -> None:
    """Refuses processes that were started together but not joined, since each would do all the work.

    Args:
        joins: whether the config lets them work together.
        overlay: a config that lets them if it is listed too.

    Raises:
        LaunchError: says how to start instead; also if the launcher's variables make no sense.
    """
    _check_variables()
    size = launched().size
    if size > 1 and not joins:
        told = f"{size} processes were started, but these configs let each do the whole work"
        how = f"list {overlay} too, or start one process" if overlay else "start one process"
        raise LaunchError(f"{told}; {how} (without torchrun, or with srun --ntasks=1)")


def idle_tasks_note(joins: bool) -> str:
    """Says that a SLURM job has tasks that do nothing; empty if it has none.

    Nothing is wrong with it: an interactive job may ask for several and use one.

    Args:
        joins: whether the config lets several processes work together.
    """
    tasks = _number("SLURM_NTASKS", 1)
    if tasks < 2 or {"WORLD_SIZE", "SLURM_STEP_NUM_TASKS"} & set(os.environ):
        return ""
    how = "to use them all, start it with srun or torchrun" if joins else "ask for --ntasks=1 next time"
    return f"this SLURM job asked for {tasks} tasks, but one process was started; {how}"


def _check_variables() -> None:
    """Refuses variables that make no sense: each process would take itself for the first, or the only one."""
    names = TORCHRUN if "WORLD_SIZE" in os.environ else SRUN
    for name in names:
        value = os.environ.get(name)
        if value is not None and not _is_number(value):
            raise LaunchError(
                f"`{name}` must be a whole number from 0, got {shown(value)}; start with torchrun or srun, "
                f"which set it, or unset {name}"
            )
    if "WORLD_SIZE" not in os.environ and _number("SLURM_STEP_NUM_TASKS", 1) <= 1:
        return
    here, (rank, size, _) = launched(), names
    if here.size < 1 or here.rank >= here.size or (here.size > 1 and rank not in os.environ):
        got = f"{os.environ.get(rank, 'none')} and {here.size}"
        raise LaunchError(
            f"`{rank}` must be below `{size}`, got {got}; start with torchrun or srun, which set both, or "
            f"unset {size}"
        )


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if _is_number(value) else default


def _is_number(value: str) -> bool:
    """Tells whether a text is one of the numbers that launchers write."""
    return value.isascii() and value.isdecimal() and len(value) <= MAX_DIGITS
