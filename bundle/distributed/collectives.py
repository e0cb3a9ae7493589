"""What ranks exchange; without a process group everything is local."""

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether more than one process trains together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_reduce(tensor: Tensor) -> None:
    """Sums `tensor` over all ranks, in place."""
    if is_distributed():
        dist.all_reduce(tensor)


def counts_per_rank(rows: Tensor) -> list[int]:
    """How many rows each rank holds, by rank."""
    if not is_distributed():
        return [rows.shape[0]]
    counts = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=rows.device)
    counts[dist.get_rank()] = rows.shape[0]
    dist.all_reduce(counts)
    return counts.tolist()


def global_rows(rows: Tensor, picks: Tensor) -> Tensor:
    """Rows `picks` of all ranks' `rows` (n, E), as if concatenated by rank; the same on every rank."""
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
