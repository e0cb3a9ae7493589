"""Saves `last.pt`, what it was before, and the three best checkpoints by a validation figure."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines import Trainer
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from bundle.checkpoints.file import rename, write_checkpoint
from bundle.checkpoints.folder import BEST_COUNT, best_paths, rolling_paths, sound
from bundle.checkpoints.random_state import random_state, set_random_state
from bundle.checkpoints.trained_on import TrainedOn, joined
from bundle.engines.settings import SettingsError

logger = logging.getLogger(__name__)


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
        trained_on: tells which patients and volumes the networks see in this run, asked when the first
            checkpoint is written; see `TrainedOn`. None: nothing is recorded.

    Attributes:
        trained_on_before: what the networks saw before this run, out of the checkpoint it started from.
    """

    def __init__(
        self,
        network: nn.Module,
        settings: dict[str, Any],
        discriminators: nn.ModuleDict,
        optimizers: dict[str, torch.optim.Optimizer | None],
        schedules: dict[str, LambdaLR | None],
        extras: dict[str, Stateful] | None = None,
        trained_on: Callable[[], TrainedOn] | None = None,
    ) -> None:
        self.network = network
        self.settings = settings
        self.discriminators = discriminators
        self.optimizers = {name: part for name, part in optimizers.items() if part is not None}
        self.schedules = {name: part for name, part in schedules.items() if part is not None}
        self.extras = dict(extras or {})
        self._trained_on = trained_on
        self._trained_on_here: TrainedOn | None = None
        self.trained_on_before: TrainedOn = {}

    def trained_on(self) -> TrainedOn:
        """All that the networks have seen: in this run, and before it."""
        if self._trained_on_here is None:
            self._trained_on_here = self._trained_on() if self._trained_on else {}
        return joined(self.trained_on_before, self._trained_on_here)

    def state_dict(self, engine: Trainer) -> dict[str, Any]:
        """Tensors and plain numbers only, so that it loads with `weights_only=True`."""
        return {
            "model": self.network.state_dict(),
            "network": self.settings,
            "trained_on": self.trained_on(),
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
        self.trained_on_before = content.get("trained_on", {})
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

    What `last.pt` was before becomes `previous_1.pt`, that one `previous_2.pt` and so on. Each file is
    complete on the disk before any older one moves. Of several ranks only the first writes.

    Args:
        state: what to save.
        output_dir: of the run; files go to its folder `checkpoints`.
        interval: iterations between two `last.pt`; it is also written when training ends.
        validator: the validation engine, whose figures rank the best; None = no best.
        metric: the figure; the larger the better.
        keep_last: how many of the last to keep, `last.pt` included.
    """

    def __init__(
        self,
        state: TrainingState,
        output_dir: str | Path,
        interval: int,
        validator: Engine | None = None,
        metric: str = "val/psnr",
        keep_last: int = 1,
    ) -> None:
        if interval < 1:
            raise SettingsError(f"`checkpoint_interval` must be at least 1 iteration, got {interval}")
        if keep_last < 1:
            raise SettingsError(f"`keep_last` must be at least 1 checkpoint, got {keep_last}")
        self.state = state
        self.folder = Path(output_dir) / "checkpoints"
        self.interval = interval
        self.validator = validator
        self.metric = metric
        self.keep_last = keep_last
        self._saved_at: int | None = None
        self._validated_since = False
        self.best: list[tuple[float, int]] = []  # figure and iteration of best_1, best_2, ...; figures fall

    def attach(self, engine: Engine) -> None:
        """Joins the trainer, and the validation engine if there is one."""
        if idist.get_rank() > 0:
            return
        engine.add_event_handler(Events.STARTED, self.restore)
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.interval), self.save_last)
        engine.add_event_handler(Events.COMPLETED, self.save_last)
        if self.validator is not None:
            self.validator.add_event_handler(Events.COMPLETED, self.save_best, engine)

    def save_last(self, engine: Trainer) -> None:
        """Writes `last.pt`, once per iteration, and once more if that was validated since.

        Raises:
            CheckpointWriteError: if there is no room; the older files are as they were.
        """
        iteration = engine.state.iteration
        if idist.get_rank() > 0 or (self._saved_at == iteration and not self._validated_since):
            return
        new = self.folder / "last_new.pt"
        write_checkpoint(new, self.state.state_dict(engine))
        names = ["last.pt", *(f"previous_{age}.pt" for age in range(1, self.keep_last))]
        if self._saved_at != iteration:
            for age in range(self.keep_last - 1, 0, -1):
                if (self.folder / names[age - 1]).is_file():
                    rename(self.folder / names[age - 1], self.folder / names[age])
        rename(new, self.folder / "last.pt")
        for path in rolling_paths(self.folder):
            if path.name not in names:
                path.unlink()
        self._saved_at, self._validated_since = iteration, False

    def save_best(self, validator: Engine, engine: Trainer) -> None:
        """Writes a `best_*.pt` if the last validation is among the best three.

        The new file is complete before the older ones move up, so that none is lost if it cannot be written.
        """
        self._validated_since = True
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
        """A resumed run goes on with the files that its folder holds, gaps left by a killed run closed.

        Files that cannot be read, and a `last.pt` of a later iteration than the one resumed, step aside: they
        would push out the sound ones, or be taken for the newest of this run.
        """
        for unfinished in self.folder.glob(".*.partial"):
            unfinished.unlink()
        iteration = engine.state.iteration
        if iteration == 0:
            return
        rolling, best = rolling_paths(self.folder), best_paths(self.folder)
        iterations = {path: content["trainer"]["iteration"] for path, content in sound(rolling)}
        kept = {path: known for path, known in iterations.items() if known <= iteration}
        ranked = {
            path: (content["figures"][self.metric], content["trainer"]["iteration"])
            for path, content in sound(best)
            if self.metric in content.get("figures", {})
        }
        for path in (path for path in (*rolling, *best) if path not in kept and path not in ranked):
            aside = path.with_name(f"{path.name}.set_aside")
            logger.warning("%s is damaged or of a later iteration; it is now %s", path, aside.name)
            path.replace(aside)
        self._saved_at = kept.get(self.folder / "last.pt")
        self.best = list(ranked.values())
        for rank, path in enumerate(ranked, start=1):
            path.replace(self._path(rank))

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
