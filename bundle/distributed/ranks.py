"""Joins the processes of a launcher into one group, which torch.distributed and ignite use too."""

import logging
import os
from datetime import timedelta
from typing import Any

import ignite.distributed as idist
import torch
import torch.distributed as dist

from bundle.distributed.launcher import LaunchError, launched
from bundle.run.names import shown
from bundle.run.rules import check

_slow_group: list[Any] = []  # a second group of the same processes, with a longer time limit


def is_joined() -> bool:
    """Tells whether this process has joined a group with the others."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Returns the number of this process among those started with it, from 0."""
    return dist.get_rank() if is_joined() else launched().rank


def world_size() -> int:
    """Returns how many processes work on this run together; 1 before they have joined."""
    return dist.get_world_size() if is_joined() else 1


def is_first() -> bool:
    """Tells whether this is rank 0, the process that writes and logs for all."""
    return rank() == 0


def join(device: torch.device | str, rank_timeout_s: int = 600, store_timeout_s: int = 86400) -> None:
    """Joins the processes of torchrun or srun; does nothing for a single process, or a second time.

    Tensors on a GPU travel by NCCL, all others by gloo. From here on ranks above 0 log errors only, since
    rank 0 already logs the rest.

    Args:
        device: of this process.
        rank_timeout_s: seconds that a process waits for the others in one exchange.
        store_timeout_s: seconds that it waits for their share of longer work, such as the patch store.

    Raises:
        LaunchError: if they cannot connect.
    """
    check(rank_timeout_s=rank_timeout_s, store_timeout_s=store_timeout_s)
    here, device = launched(), torch.device(device)
    if here.size == 1 or is_joined():
        return
    is_gpu = device.type == "cuda"
    if is_gpu:
        torch.cuda.set_device(device)
    limit = timedelta(seconds=rank_timeout_s)
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if is_gpu else "gloo",
            store=launcher_store(limit),
            rank=here.rank,
            world_size=here.size,
            timeout=limit,
        )
        _slow_group[:] = [dist.new_group(backend="gloo", timeout=timedelta(seconds=store_timeout_s))]
        os.environ["SLURM_LOCALID"] = str(here.local_rank)  # which ignite prefers to torchrun's LOCAL_RANK
        idist.sync()  # needs all processes, so it cannot wait until one of them first uses ignite
    except LaunchError:
        raise
    except (RuntimeError, ValueError) as error:
        raise LaunchError(
            f"the {here.size} processes did not meet ({first_line(error)}); see what the "
            "others say, and whether MASTER_ADDR and MASTER_PORT can be reached"
        ) from error
    if here.rank > 0:
        logging.getLogger().setLevel(logging.ERROR)


def leave() -> None:
    """Leaves the group, if there is one; the process goes on alone."""
    if is_joined():
        _slow_group.clear()
        dist.destroy_process_group()


def wait_for_ranks() -> None:
    """Waits until all ranks have reached this call, for at most `store_timeout_s`."""
    if _slow_group:
        dist.barrier(group=_slow_group[0])


def launcher_store(limit: timedelta) -> dist.Store:
    """Opens the store in which the processes exchange notes: torchrun's own, or rank 0's under srun.

    Args:
        limit: time to wait for it.

    Raises:
        LaunchError: if its address is not known.
    """
    if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
        raise LaunchError(
            "`MASTER_ADDR` and `MASTER_PORT` must be set for srun without torchrun, e.g. export MASTER_PORT="
            "29500 MASTER_ADDR=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1)"
        )
    port = os.environ["MASTER_PORT"]
    if not (port.isascii() and port.isdecimal() and 0 < int(port[:9]) < 1 << 16):
        raise LaunchError(
            f"`MASTER_PORT` must be a port from 1 to 65535, got {shown(port)}; e.g. export MASTER_PORT=29500"
        )
    is_served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store: dist.Store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(port),
        is_master=launched().rank == 0 and not is_served,
        timeout=limit,
        multi_tenant=True,
    )
    if not is_served:
        # Jobs that were given one port on one machine by mistake must not read each other's words.
        job = "_".join(os.environ.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
        store = dist.PrefixStore(f"job_{job}", store)
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        # torchrun's store keeps its keys over a restart (measured: 4 of 12 restarts failed); on several
        # nodes each node counts its own restarts, so this count would separate them
        store = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    return store


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its kind if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
