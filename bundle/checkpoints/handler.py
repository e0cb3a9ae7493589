"""Saves `last.pt` and the ones before it, and the three best checkpoints by a validation figure."""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ignite.engine import Engine, Events
from torch import nn

from bundle.checkpoints.file import write_checkpoint
from bundle.checkpoints.folder import BEST_COUNT, best_paths, rolling_paths, sound
from bundle.checkpoints.state import TrainingState
from bundle.distributed.ranks import is_first
from bundle.engines.trainer import AdversarialTrainer
from bundle.run.atomic import remove_leftovers, rename
from bundle.run.rules import check

logger = logging.getLogger(__name__)

PSNR, LPIPS = "val/psnr", "val/lpips"


class Gate(Protocol):
    """Tells from which iteration on adversarial terms act; see `bundle.handlers.gate.IterationGate`."""

    def generator_share(self, iteration: int) -> float:
        """Returns the share of the terms' weights: 0 below the gate."""
        ...


class CheckpointHandler:
    """Writes `last.pt` during training and `best_1.pt` (the best) to `best_3.pt` after validation.

    The former `last.pt` becomes `previous_1.pt`, that one `previous_2.pt`, and so on. A new file is complete
    on the disk before an older one moves. Of several ranks only the first writes.

    Args:
        state: what to save.
        output_dir: of the run; files go to its folder `checkpoints`.
        interval: iterations between two `last.pt`; it is also written when training ends.
        keep_last: how many of the last to keep, `last.pt` included.
        gate: `IterationGate` of an adversarial run. Every checkpoint written after the gate has opened ranks
            above every earlier one, since the adversarial losses, the purpose of such a run, did not act
            before. These losses often lower PSNR, so LPIPS ranks the checkpoints if the validator measures
            it. None: PSNR ranks them.

    Attributes:
        metric: the figure that ranks, `val/psnr` (larger is better) or `val/lpips` (smaller is better).
    """

    def __init__(
        self,
        state: TrainingState,
        output_dir: str | Path,
        interval: int,
        keep_last: int = 1,
        gate: Gate | None = None,
    ) -> None:
        check(checkpoint_interval=interval, keep_last=keep_last)
        self.state = state
        self.folder = Path(output_dir) / "checkpoints"
        self.interval = interval
        self.metric = PSNR
        self.keep_last = keep_last
        self.gate = gate
        self._saved_at: int | None = None
        self._validated_since = False
        self.best: list[tuple[float, int]] = []  # figure and iteration of best_1, best_2, ...

    def attach(self, engine: AdversarialTrainer) -> None:
        """Joins the trainer, and its validator if there is one, whose figures rank the best."""
        if not is_first():
            return
        engine.add_event_handler(Events.STARTED, self.restore)
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.interval), self.save_last)
        engine.add_event_handler(Events.COMPLETED, self.save_last)
        engine.add_event_handler(Events.TERMINATE, self.save_stopped)
        if engine.validator is not None:
            engine.validator.add_event_handler(Events.COMPLETED, self.save_best, engine)

    def save_last(self, engine: AdversarialTrainer) -> None:
        """Writes `last.pt` once per iteration, and once more if that iteration has been validated since.

        Raises:
            CheckpointWriteError: if there is no room; the older files are unchanged.
        """
        iteration = engine.state.iteration
        if not is_first() or (self._saved_at == iteration and not self._validated_since):
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

    def save_stopped(self, engine: AdversarialTrainer) -> None:
        """Writes `last.pt` if the run was stopped without a `COMPLETED` event, which calls `save_last`."""
        if engine.should_terminate == "skip_completed":
            self.save_last(engine)
            logger.info(
                "Stopped at iteration %d; go on with --resume_from_checkpoint auto", engine.state.iteration
            )

    def save_best(self, validator: Engine, engine: AdversarialTrainer) -> None:
        """Writes a `best_*.pt` if the last validation is among the best three.

        The new file is complete before the older ones move up, so that none is lost if it cannot be written.
        """
        self._validated_since = True
        metrics = validator.state.metrics
        figures = {name: float(value) for name, value in metrics.items() if name.startswith("val/")}
        self.metric = self._metric_of([figures])
        figure, iteration = figures[self.metric], engine.state.iteration
        kept = [(better, known) for better, known in self.best if known != iteration]
        rank = sum(self._rank(figure, iteration) <= self._rank(*other) for other in kept)
        if not self._rank(figure, iteration)[1] > -math.inf or rank >= BEST_COUNT:  # NaN is not above it
            return
        content = {**self.state.state_dict(engine), "figures": figures}
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

    def restore(self, engine: AdversarialTrainer) -> None:
        """Takes over the files in the folder of a resumed run, and closes gaps that a kill has left.

        Files that cannot be read are renamed, and so is a `last.pt` of a later iteration than the resumed
        one. Otherwise they would push out the sound files, or count as the newest of this run.
        """
        remove_leftovers(self.folder, age_s=-1)  # the run holds the folder's lock
        iteration = engine.state.iteration
        if iteration == 0:
            return
        rolling, best = rolling_paths(self.folder), best_paths(self.folder)
        iterations = {path: content["trainer"]["iteration"] for path, content in sound(rolling)}
        kept = {path: saved for path, saved in iterations.items() if saved <= iteration}
        known = {
            path: (content.get("figures", {}), content["trainer"]["iteration"])
            for path, content in sound(best)
        }
        self.metric = self._metric_of([figures for figures, _ in known.values()])
        ranked = {
            path: (float(figures[self.metric]), iteration)
            for path, (figures, iteration) in known.items()
            if self.metric in figures
        }
        for path in (path for path in (*rolling, *best) if path not in kept and path not in ranked):
            aside = path.with_name(f"{path.name}.set_aside")
            logger.warning("%s is damaged or of a later iteration; it is now %s", path, aside.name)
            path.replace(aside)
        self._saved_at = kept.get(self.folder / "last.pt")
        self.best = list(ranked.values())
        for rank, path in enumerate(ranked, start=1):
            path.replace(self._path(rank))

    def _metric_of(self, all_figures: Sequence[Mapping[str, float]]) -> str:
        has_lpips = bool(all_figures) and all(LPIPS in figures for figures in all_figures)
        return LPIPS if self.gate is not None and has_lpips else PSNR

    def _rank(self, figure: float, iteration: int) -> tuple[bool, float]:
        """Returns the key by which checkpoints are ranked: the larger, the better."""
        is_adversarial = self.gate is None or self.gate.generator_share(iteration) > 0
        return is_adversarial, -figure if self.metric == LPIPS else figure

    def _forget(self, iteration: int) -> None:
        """Removes a best checkpoint of an iteration that a resumed run has reached again."""
        for index, (_, known) in enumerate(self.best):
            if known == iteration:
                del self.best[index]
                self._path(index + 1).unlink()
                for rank in range(index + 1, len(self.best) + 1):
                    self._path(rank + 1).replace(self._path(rank))
                return

    def _path(self, rank: int) -> Path:
        return self.folder / f"best_{rank}.pt"


class NetworkCheckpoint:
    """Writes `{"model": weights, **content}`, whole or not at all; a run cannot be resumed from it.

    Args:
        network: to save.
        path: of the .pt.
        content: plain values beside the weights; its `network` names the VQ-GAN that made the latents.
    """

    def __init__(self, network: nn.Module, path: str | Path, content: Mapping[str, Any]) -> None:
        self.network, self.path, self.content = network, Path(path), dict(content)

    def attach(self, engine: Engine) -> None:
        """Joins the trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Saves.

        Raises:
            CheckpointWriteError: if there is no room; what the file held before is still there.
        """
        write_checkpoint(self.path, {"model": self.network.state_dict(), **self.content})
