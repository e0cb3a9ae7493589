"""Exchanges values between ranks; without a process group everything is local."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from bundle.distributed.ranks import is_first, is_joined
from bundle.run.errors import own_message, short_message

Value = TypeVar("Value")


class FirstRankError(RuntimeError):
    """Ends a rank because rank 0 could not go on; rank 0 says why."""


def is_distributed() -> bool:
    """Tells whether more than one process trains together."""
    return is_joined() and dist.get_world_size() > 1


def all_reduce(tensor: Tensor) -> None:
    """Sums `tensor` over all ranks, in place."""
    if is_distributed():
        dist.all_reduce(tensor)


def average(tensors: Sequence[Tensor]) -> None:
    """Replaces tensors on one device by their means over all ranks, in place and in one exchange.

    Every rank gives the same number of tensors, of the same shapes and in the same order, and gets the same
    bits.
    """
    if not is_distributed() or not tensors:
        return
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view(tensor.shape))


def any_rank(holds: bool) -> bool:
    """Tells whether a condition holds on any rank; the answer is the same on all."""
    if not is_distributed():
        return holds
    count = torch.tensor(int(holds))
    dist.all_reduce(count)
    return int(count) > 0


def gather(value: Value) -> list[Value]:
    """Returns the values of all ranks, by rank; they can be pickled."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def on_first_rank(call: Callable[[], Value]) -> Value | None:
    """Calls a function on rank 0 only; all ranks go on with its result, or none does.

    Processes that have not joined cannot wait for each other; then all but the first skip the call and get
    None.

    Raises:
        FirstRankError: on the other ranks, if `call` failed.
    """
    if not is_distributed():
        return call() if is_first() else None
    outcome: list[Any] = [None, None]  # the value, and the reason if there is none
    try:
        if is_first():
            outcome[0] = call()
    except Exception as error:
        outcome[1] = own_message(error) or short_message(error)
        raise
    finally:
        dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise FirstRankError(outcome[1])
    return outcome[0]


def counts_per_rank(rows: Tensor) -> list[int]:
    """Returns how many rows each rank holds, by rank."""
    if not is_distributed():
        return [rows.shape[0]]
    counts = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=rows.device)
    counts[dist.get_rank()] = rows.shape[0]
    dist.all_reduce(counts)
    return counts.tolist()


def global_rows(rows: Tensor, picks: Tensor) -> Tensor:
    """Returns rows `picks` of all ranks' `rows` (n, E), as if concatenated by rank; equal on every rank."""
    picks = picks.to(rows.device)
    if not is_distributed():
        return rows[picks]
    counts, rank = counts_per_rank(rows), dist.get_rank()
    local = picks - sum(counts[:rank])
    mine = (local >= 0) & (local < counts[rank])
    picked = torch.zeros(len(picks), rows.shape[1], device=rows.device)
    picked[mine] = rows[local[mine]]
    dist.all_reduce(picked)
    return picked
