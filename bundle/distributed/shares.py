"""Tells which part of the work belongs to this process."""

import torch
from torch import Tensor

from bundle.distributed.ranks import rank, world_size
from bundle.run.rules import SettingsError


def batch_share(batch_size: int, ranks: int | None = None) -> int:
    """Returns how many samples of a batch each process takes.

    Args:
        batch_size: of all processes together.
        ranks: number of processes; None = those that have joined.

    Raises:
        SettingsError: if the batch cannot be divided.
    """
    ranks = world_size() if ranks is None else ranks
    if batch_size % ranks != 0:
        raise SettingsError(
            f"`batch_size` must be a multiple of the {ranks} processes that share a batch, got {batch_size}; "
            f"set e.g. --batch_size {-(-batch_size // ranks) * ranks}"
        )
    return batch_size // ranks


def whole_shape(shape: torch.Size) -> torch.Size:
    """Returns the shape (B, ...) of the whole batch, of which every process holds the same number of rows."""
    return torch.Size([shape[0] * world_size(), *shape[1:]])


def own_rows(rows: Tensor) -> Tensor:
    """Returns this process's rows of a tensor (B, ...) that all processes have."""
    share = batch_share(len(rows))
    return rows[rank() * share : (rank() + 1) * share] if world_size() > 1 else rows
