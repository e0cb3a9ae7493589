"""Trains a codebook on several gloo processes: `python codebook_on_ranks.py FOLDER WORLD_SIZE ...`.

The processes are forks of this one, which has imported torch once; each writes what it got to FOLDER.
"""

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from bundle.networks.quantizer import EMACodebook

STEPS, SAMPLES = 6, 11  # 11 samples share unevenly on 2 and on 8 ranks


def batches() -> list[torch.Tensor]:
    """The same latents (11, 4, 2, 2, 2) per step in every process; they drift, so that codes die."""
    generator = torch.Generator().manual_seed(7)
    shape = (SAMPLES, 4, 2, 2, 2)
    return [torch.randn(shape, generator=generator) * 0.5 + 2 * step for step in range(STEPS)]


def train(rank: int, world_size: int) -> dict[str, torch.Tensor]:
    """The codebook's final state, and counts and restarts of every step."""
    torch.manual_seed(rank)
    codebook = EMACodebook(32, 4, restart_share=0.25).train()
    counts, restarts = [], []
    for latent in batches():
        codebook(latent.tensor_split(world_size)[rank])
        codebook.update()
        counts.append(codebook.counts().seen)
        restarts.append(codebook.counts().restarts)
    return {**codebook.state_dict(), "counts": torch.stack(counts), "restarts": torch.stack(restarts)}


def _run_rank(folder: Path, rank: int, world_size: int) -> None:
    torch.set_num_threads(1)
    meeting_point = f"file://{folder}/meeting_point_{world_size}"
    patience = timedelta(seconds=60)  # with a rank that failed
    dist.init_process_group("gloo", meeting_point, patience, world_size, rank)
    torch.save(train(rank, world_size), folder / f"{world_size}_{rank}.pt")
    dist.destroy_process_group()


def _fork(folder: Path, world_size: int) -> None:
    children = []
    for rank in range(world_size):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                _run_rank(folder, rank, world_size)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    failed = [rank for rank, child in enumerate(children) if os.waitpid(child, 0)[1] != 0]
    if failed:
        sys.exit(f"ranks {failed} of {world_size} failed")


if __name__ == "__main__":
    for size in sys.argv[2:]:
        _fork(Path(sys.argv[1]), int(size))
