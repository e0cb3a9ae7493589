"""Saves `last.pt` and the three best checkpoints by a validation figure."""

import logging
import random
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import Trainer
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from bundle.handlers.checkpoint_file import read_checkpoint, write_checkpoint

logger = logging.getLogger(__name__)

BEST_COUNT = 3


class Stateful(Protocol):
    """What a checkpoint can keep: see `TrainingState`."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain numbers."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """The inverse of `state_dict`."""
        ...


class TrainingState:
    """Everything of a run that a checkpoint has to hold, by name.

    Args:
        network: the generator.
        settings: `network_settings` of this run.
        discriminators: may be empty.
        optimizers: by name; entries of None are networks that do not exist in this run.
        schedules: by name, likewise.
        extras: whatever else goes on where it was, by name: objects with `state_dict()`, of tensors and plain
            numbers, and `load_state_dict()`. A handler may add itself to the attribute of that name until the
            run starts. One that a checkpoint does not know is left alone.
    """

    def __init__(
        self,
        network: nn.Module,
        settings: dict[str, Any],
        discriminators: nn.ModuleDict,
        optimizers: dict[str, torch.optim.Optimizer | None],
        schedules: dict[str, LambdaLR | None],
        extras: dict[str, Stateful] | None = None,
    ) -> None:
        self.network = network
        self.settings = settings
        self.discriminators = discriminators
        self.optimizers = {name: part for name, part in optimizers.items() if part is not None}
        self.schedules = {name: part for name, part in schedules.items() if part is not None}
        self.extras = dict(extras or {})

    def state_dict(self, engine: Trainer) -> dict[str, Any]:
        """Tensors and plain numbers only, so that it loads with `weights_only=True`."""
        return {
            "model": self.network.state_dict(),
            "network": self.settings,
            "discriminators": self.discriminators.state_dict(),
            "optimizers": {name: part.state_dict() for name, part in self.optimizers.items()},
            "schedules": {name: {"last_epoch": part.last_epoch} for name, part in self.schedules.items()},
            "trainer": {
                "iteration": engine.state.iteration,
                "epoch_length": engine.state.epoch_length,
                "max_epochs": engine.state.max_epochs,
            },
            "random": random_state(),
            "extras": {name: part.state_dict() for name, part in self.extras.items()},
        }

    def load_state_dict(self, content: dict[str, Any], engine: Trainer) -> None:
        """Restores all that `state_dict` holds, but for `max_epochs`, which a resumed run may extend.

        Learning rates follow from this run's own schedules, so that a resumed run may change them.
        """
        self.network.load_state_dict(content["model"])
        self.discriminators.load_state_dict(content["discriminators"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(content["optimizers"][name])
        for name, schedule in self.schedules.items():
            _set_step(schedule, content["schedules"][name]["last_epoch"])
        engine.state.iteration = content["trainer"]["iteration"]
        engine.state.epoch = engine.state.iteration // engine.state.epoch_length
        set_random_state(content["random"])
        known = content.get("extras", {})
        for name in self.extras.keys() & known.keys():
            self.extras[name].load_state_dict(known[name])


class CheckpointHandler:
    """Writes `last.pt` during training and `best_1.pt` (the best) to `best_3.pt` after validation.

    Args:
        state: what to save.
        output_dir: of the run; files go to its folder `checkpoints`.
        interval: iterations between two `last.pt`; it is also written when training ends.
        validator: the validation engine, whose figures rank the best; None = no best.
        metric: the figure; the larger the better.
    """

    def __init__(
        self,
        state: TrainingState,
        output_dir: str | Path,
        interval: int,
        validator: Engine | None = None,
        metric: str = "val/psnr",
    ) -> None:
        if interval < 1:
            raise ValueError(f"`checkpoint_interval` must be at least 1 iteration, got {interval}")
        self.state = state
        self.folder = Path(output_dir) / "checkpoints"
        self.interval = interval
        self.validator = validator
        self.metric = metric
        self._saved_at: int | None = None
        self.best: list[tuple[float, int]] = []  # figure and iteration of best_1, best_2, ...; figures fall

    def attach(self, engine: Trainer) -> None:
        """Joins the trainer, and the validation engine if there is one."""
        engine.add_event_handler(Events.STARTED, self.restore)
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.interval), self.save_last)
        engine.add_event_handler(Events.COMPLETED, self.save_last)
        if self.validator is not None:
            self.validator.add_event_handler(Events.COMPLETED, self.save_best, engine)

    def save_last(self, engine: Trainer) -> None:
        """Writes `last.pt`, once per iteration."""
        if self._saved_at != engine.state.iteration:
            write_checkpoint(self.folder / "last.pt", self.state.state_dict(engine))
            self._saved_at = engine.state.iteration

    def save_best(self, validator: Engine, engine: Trainer) -> None:
        """Writes a `best_*.pt` if the last validation is among the best three.

        The new file is complete before the older ones move up, so that none is lost if it cannot be written.
        """
        figure, iteration = float(validator.state.metrics[self.metric]), engine.state.iteration
        kept = [(better, known) for better, known in self.best if known != iteration]
        rank = sum(figure <= better for better, _ in kept)
        if not figure > float("-inf") or rank >= BEST_COUNT:
            return
        content = {**self.state.state_dict(engine), "figures": {self.metric: figure}}
        write_checkpoint(self.folder / "best_new.pt", content)
        self._forget(iteration)
        for worse in range(min(len(self.best), BEST_COUNT - 1), rank, -1):
            self._path(worse).replace(self._path(worse + 1))
        (self.folder / "best_new.pt").replace(self._path(rank + 1))
        self.best = [*self.best[:rank], (figure, iteration), *self.best[rank:]][:BEST_COUNT]
        logger.info(
            "Iteration %d: %s %.3f ranks %d in this run, saved as best_%d.pt",
            iteration, self.metric, figure, rank + 1, rank + 1,
        )  # fmt: skip

    def restore(self, engine: Trainer) -> None:
        """A resumed run goes on with the ranking that its folder holds, gaps left by a stopped run closed."""
        if engine.state.iteration == 0:
            return
        for path in (self._path(rank) for rank in range(1, BEST_COUNT + 1)):
            if path.is_file():
                content = read_checkpoint(path)
                self.best.append((content["figures"][self.metric], content["trainer"]["iteration"]))
                path.replace(self._path(len(self.best)))

    def _forget(self, iteration: int) -> None:
        """Drops a best of the same iteration: a resumed run came by again."""
        for index, (_, known) in enumerate(self.best):
            if known == iteration:
                del self.best[index]
                self._path(index + 1).unlink()
                for rank in range(index + 1, len(self.best) + 1):
                    self._path(rank + 1).replace(self._path(rank))
                return

    def _path(self, rank: int) -> Path:
        return self.folder / f"best_{rank}.pt"


def _set_step(schedule: LambdaLR, step: int) -> None:
    schedule.last_epoch = step
    factors = [factor(step) for factor in schedule.lr_lambdas]
    for group, base, factor in zip(schedule.optimizer.param_groups, schedule.base_lrs, factors, strict=True):
        group["lr"] = base * factor


def random_state() -> dict[str, Any]:
    """States of the random generators of Python, NumPy, torch and CUDA, as tensors and plain numbers."""
    version, numbers, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)
    return {
        "python": {"version": version, "numbers": list(numbers), "gauss": gauss},
        "numpy": {
            "name": str(numpy["bit_generator"]),
            "keys": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
            "position": int(numpy["state"]["pos"]),
            "has_gauss": int(numpy["has_gauss"]),
            "cached": float(numpy["gauss"]),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """The inverse of `random_state`; CUDA's are set where their number fits this machine."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["numbers"]), python["gauss"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state((numpy["name"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
