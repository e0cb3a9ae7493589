"""Trains on two gloo processes, one of which gets undefined batches: `python guard_on_ranks.py FOLDER`.

The processes are forks of this one, which has imported torch once; each writes what it got to FOLDER, and
would write its checkpoints to a folder of its own. A second run has so many bad batches that it rolls back.
"""

import math
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from ignite.engine import Events

from bundle.checkpoints.file import network_settings
from bundle.checkpoints.handler import CheckpointHandler
from bundle.checkpoints.state import TrainingState
from bundle.engines.optimizers import build_optimizer
from bundle.engines.preflight import check_ranks
from bundle.engines.trainer import AdversarialTrainer
from bundle.handlers.gate import IterationGate
from bundle.handlers.nonfinite import HealthGuard
from bundle.handlers.updates import GeneratorUpdate
from bundle.losses.objective import GeneratorObjective
from bundle.networks.quantizer import EMACodebook
from bundle.networks.vqgan import VQGAN, Preset

RANKS, LENGTH, BAD_RANK = 2, 3, 1
SETTINGS = network_settings("lite", "ema", 8, -1000, 1000)


def train(rank: int, folder: Path, bad: tuple[int, ...], rolls_back: bool) -> dict[str, object]:
    """Weights after each of three iterations on the same batches, but for bad ones on one rank."""
    torch.manual_seed(0)
    network = VQGAN(Preset((4, 8), 1, tail_channels=4), EMACodebook(8, 8))
    optimizer = build_optimizer(network, 1e-3)
    batches = [{"image": torch.rand(2, 1, 16, 16, 16) * 2 - 1} for _ in range(LENGTH)]
    for iteration in bad if rank == BAD_RANK else ():
        batches[iteration - 1]["image"][0, 0, 1, 2, 3] = math.nan
    state = TrainingState(network, SETTINGS, torch.nn.ModuleDict(), {"generator": optimizer})
    told: list[str] = []
    guard = HealthGuard(
        state,
        folder / "rank_0",
        patience=2 if rolls_back else 10,
        note_event=lambda kind, **details: told.append(f"{kind} {details.get('what', '')}"),
    )
    checkpoints = CheckpointHandler(state, folder / f"rank_{rank}", interval=1 if rolls_back else 2)
    update = GeneratorUpdate(optimizer, GeneratorObjective(1.0, 0.25), IterationGate(99))
    handlers = [update, guard, checkpoints]
    trainer = AdversarialTrainer("cpu", 1, batches, LENGTH, network, 2, train_handlers=handlers)
    weights = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda: weights.append(
            torch.cat([value.flatten().double() for value in network.state_dict().values()])
        ),
    )
    trainer.run()
    counts = {"skipped": guard.skipped, "rollbacks": guard.rollbacks, "told": told}
    return {"weights": torch.stack(weights), "check": check_ranks().level, **counts}


def run_rank(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"WORLD_SIZE": str(RANKS), "RANK": str(rank)}
    meeting_point = f"file://{folder}/meeting_point"
    dist.init_process_group("gloo", meeting_point, timedelta(seconds=60), RANKS, rank)
    torch.save(train(rank, folder, bad=(2,), rolls_back=False), folder / f"{rank}.pt")
    torch.save(train(rank, folder / "back", bad=(2, 3), rolls_back=True), folder / f"back_{rank}.pt")
    dist.destroy_process_group()


def main(folder: Path) -> None:
    children = []
    for rank in range(RANKS):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                run_rank(folder, rank)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    if any([os.waitpid(child, 0)[1] != 0 for child in children]):
        sys.exit("a rank failed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
