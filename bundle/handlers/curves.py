"""Curves: TensorBoard, `metrics.csv`, a line in the log and the progress bar."""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from torch.optim import Optimizer
from torch.utils.tensorboard import SummaryWriter

from bundle.distributed.ranks import is_first
from bundle.engines.trainer import AdversarialTrainer
from bundle.handlers.codebook_window import CodebookWindow
from bundle.handlers.curve_table import LEARNING_RATE, TAGS, append_row, keep_rows_until, rows_of
from bundle.run.console import has_terminal
from bundle.run.rules import check

logger = logging.getLogger(__name__)


class LogFolderError(ValueError):
    """A folder for curves that cannot be used; the message names it."""


class TensorBoardLog:
    """Holds the run's TensorBoard folder, which is made when the first value is written."""

    def __init__(self, output_dir: str | Path) -> None:
        self.folder = Path(output_dir) / "tensorboard"
        self.resumed_at = 0  # TensorBoard hides later points of the run that this one continues
        self._writer: SummaryWriter | None = None

    @property
    def writer(self) -> SummaryWriter:
        """Returns torch's writer."""
        if self._writer is None:
            self._writer = SummaryWriter(str(self.folder), purge_step=self.resumed_at + 1)
        return self._writer

    def check(self) -> None:
        """Checks before training whether the folder can be used.

        Raises:
            LogFolderError: if it is not a folder, or cannot be written.
        """
        if self.folder.exists() and not (self.folder.is_dir() and os.access(self.folder, os.W_OK | os.X_OK)):
            raise LogFolderError(
                f"{self.folder}: must be a folder that can be written; remove it or give another --output_dir"
            )

    def close(self) -> None:
        """Flushes what is pending."""
        if self._writer is not None:
            self._writer.close()


class ScalarLog:
    """Logs means of the losses over `interval` iterations, the codebook's health and the validation figures.

    Curves that do not exist yet (all adversarial ones below the gate) are not written. Values leave the
    device once per interval, so that logging never holds up training. A resumed run drops the points after
    its checkpoint, since it computes them again, and continues the sums that the checkpoint holds: its curves
    are those of a run that was never interrupted.

    Args:
        tensorboard: where curves go.
        output_dir: `metrics.csv` goes here.
        interval: iterations between two points.
        optimizer: whose learning rate is logged.
        progress: shows a bar, where there is a terminal.
    """

    def __init__(
        self,
        tensorboard: TensorBoardLog,
        output_dir: str | Path,
        interval: int,
        optimizer: Optimizer,
        progress: bool = True,
    ) -> None:
        check(log_interval=interval)
        self.tensorboard = tensorboard
        self.csv_path = Path(output_dir) / "metrics.csv"
        self.interval = interval
        self.optimizer = optimizer
        self.progress = progress
        self.codebook = CodebookWindow()
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}
        self._validated_at = -1
        self._has_told_first = False
        self.figures: dict[str, float] = {}  # last value of every curve, for run.json

    def attach(self, engine: AdversarialTrainer) -> None:
        """Joins the trainer, and its validator if there is one, whose figures are logged too."""
        engine.keep("curves", self)
        engine.state.figures = self.figures
        if not is_first():
            return
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._tell_first)
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.interval), self.write_training)
        engine.add_event_handler(Events.COMPLETED, self.finish)
        engine.add_event_handler(Events.TERMINATE, self.tensorboard.close)
        if engine.validator is not None:
            engine.validator.add_event_handler(Events.COMPLETED, self.write_validation, engine)
        if self.progress and has_terminal():
            bar = ProgressBar(persist=True, desc="training")
            bar.attach(engine, output_transform=self._beside_bar)

    def start(self, engine: AdversarialTrainer) -> None:
        """Drops what an earlier run in this folder logged after this one's first iteration.

        That includes the validation of this very iteration, if the checkpoint was written before it was done.

        Raises:
            LogFolderError: if the folder of the curves cannot be used.
        """
        self.tensorboard.check()
        iteration, validated = engine.state.iteration, self._validated_at == engine.state.iteration
        if self.csv_path.exists():
            keep_rows_until(self.csv_path, iteration, validated)
        self.tensorboard.resumed_at = iteration if validated else max(iteration - 1, 0)
        if not validated:  # TensorBoard takes back all points of an iteration or none
            self._draw_again(iteration)

    def state_dict(self) -> dict[str, Any]:
        """Returns the sums since the last point, and the last value of every curve."""
        return {
            "sums": dict(self._sums),
            "counts": dict(self._counts),
            "codebook": self.codebook.state_dict(),
            "validated_at": self._validated_at,
            "figures": dict(self.figures),
        }

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._sums, self._counts = dict(content["sums"]), dict(content["counts"])
        self.codebook.load_state_dict(content["codebook"])
        self._validated_at = content["validated_at"]
        self.figures.update(content["figures"])

    def finish(self, engine: AdversarialTrainer) -> None:
        """Writes a point of the iterations since the last one; flushes the curves."""
        if self._counts:
            self.write_training(engine)
        self.tensorboard.close()

    def collect(self, engine: AdversarialTrainer) -> None:
        """Adds one iteration's losses and code counts to the interval's, without leaving the device."""
        for name, value in engine.current.losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach()
            self._counts[name] = self._counts.get(name, 0) + 1
        self.codebook.add(engine.network.quantizer)

    def write_training(self, engine: AdversarialTrainer) -> None:
        """Writes one point of every training curve."""
        values = {f"train/{name}": float(total) / self._counts[name] for name, total in self._sums.items()}
        values.pop("train/loss", None)
        values[LEARNING_RATE] = self.optimizer.param_groups[0]["lr"]
        values |= self.codebook.figures()
        self._sums.clear()
        self._counts.clear()
        self._write(engine, values)

    def write_validation(self, validator: Engine, engine: AdversarialTrainer) -> None:
        """Writes one point of every validation curve."""
        metrics = validator.state.metrics
        self._validated_at = engine.state.iteration
        self._write(
            engine, {name: float(value) for name, value in metrics.items() if name.startswith("val/")}
        )

    def _write(self, engine: AdversarialTrainer, values: dict[str, float]) -> None:
        iteration = engine.state.iteration
        epoch = -(-iteration // engine.state.epoch_length)  # the engine's own is one ahead when a run resumes
        self.figures |= values | {"iteration": iteration}
        try:
            for name, value in values.items():
                self.tensorboard.writer.add_scalar(name, value, iteration)
            self.tensorboard.writer.flush()  # a killed run must not lose points before its checkpoint
            append_row(self.csv_path, {"iteration": iteration, "epoch": epoch, **values})
        except OSError as error:
            raise LogFolderError(
                f"{self.csv_path.parent}: curves cannot be written ({error.strerror}); make room and go on "
                "with --resume_from_checkpoint auto"
            ) from error
        listed = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        logger.info("epoch %d iteration %d  %s", epoch, iteration, listed)

    def _beside_bar(self, output: Any) -> dict[str, float]:
        """Returns the two most telling figures, as far as they are known."""
        known = {"recon_loss": "train/recon_loss", "val_psnr": "val/psnr"}
        return {name: self.figures[curve] for name, curve in known.items() if curve in self.figures}

    def _tell_first(self, engine: AdversarialTrainer) -> None:
        """Logs the first iteration: without a bar it is the first sign of life."""
        if not self._has_told_first and engine.state.iteration % self.interval != 0:
            iteration, length = engine.state.iteration, engine.state.epoch_length
            logger.info(
                "epoch %d iteration %d is done, the first of this start; figures follow every %d iterations",
                *(-(-iteration // length), iteration, self.interval),
            )
        self._has_told_first = True

    def _draw_again(self, iteration: int) -> None:
        if iteration == 0 or not self.csv_path.exists():
            return
        for row in (row for row in rows_of(self.csv_path) if row["iteration"] == str(iteration)):
            for name in TAGS:
                if row.get(name):
                    self.tensorboard.writer.add_scalar(name, float(row[name]), iteration)
