"""Curves: TensorBoard, `metrics.csv`, a line in the log and the progress bar."""

import csv
import logging
import math
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from torch.optim import Optimizer
from torch.utils.tensorboard import SummaryWriter

from bundle.engines.trainer import AdversarialTrainer
from bundle.networks.vqgan import Quantizer

logger = logging.getLogger(__name__)

TAGS = (
    "train/recon_loss",
    "train/commitment_loss",
    "train/perceptual_loss",
    "train/gen_loss",
    "train/disc_loss",
    "train/gan_feat_loss",
    "train/learning_rate",
    "codebook/usage",
    "codebook/perplexity",
    "codebook/restarts",
    "val/psnr",
    "val/ssim",
    "val/lpips",
    "val/mae_hu",
    "val/rmse_hu",
)


class TensorBoardLog:
    """The run's TensorBoard folder; made when the first value is written, not before."""

    def __init__(self, output_dir: str | Path) -> None:
        self.folder = Path(output_dir) / "tensorboard"
        self.resumed_at = 0  # later points of the run that this one continues are hidden
        self._writer: SummaryWriter | None = None

    @property
    def writer(self) -> SummaryWriter:
        """Torch's writer."""
        if self._writer is None:
            self._writer = SummaryWriter(str(self.folder), purge_step=self.resumed_at + 1)
        return self._writer

    def close(self) -> None:
        """Flushes what is pending."""
        if self._writer is not None:
            self._writer.close()


class ScalarLog:
    """Means of the losses over `interval` iterations, the codebook's health and the validation figures.

    Curves that do not exist yet (all adversarial ones below the gate) are not written. Values leave the
    device once per interval, so that logging never holds up training. A resumed run takes back the points
    after its checkpoint, which it comes by again.

    Args:
        tensorboard: where curves go.
        output_dir: `metrics.csv` goes here.
        interval: iterations between two points.
        optimizer: whose learning rate is logged.
        validator: its figures are logged when it is done.
        progress: shows a bar.
    """

    def __init__(
        self,
        tensorboard: TensorBoardLog,
        output_dir: str | Path,
        interval: int,
        optimizer: Optimizer,
        validator: Engine | None = None,
        progress: bool = True,
    ) -> None:
        if interval < 1:
            raise ValueError(f"`log_interval` must be at least 1 iteration, got {interval}")
        self.tensorboard = tensorboard
        self.csv_path = Path(output_dir) / "metrics.csv"
        self.interval = interval
        self.optimizer = optimizer
        self.validator = validator
        self.progress = progress
        self.codebook = CodebookWindow()
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}

    def attach(self, engine: AdversarialTrainer) -> None:
        """Joins the trainer, and the validation engine if there is one."""
        engine.state.figures = {}  # last value of every curve, for run.json
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.interval), self.write_training)
        engine.add_event_handler(Events.COMPLETED, self.finish)
        if self.validator is not None:
            self.validator.add_event_handler(Events.COMPLETED, self.write_validation, engine)
        if self.progress:
            engine.state.recon_loss = engine.state.val_psnr = math.nan
            bar = ProgressBar(persist=True, desc="training")
            bar.attach(engine, state_attributes=["recon_loss", "val_psnr"])

    def start(self, engine: AdversarialTrainer) -> None:
        """Takes back what an earlier run in this folder logged after this one's first iteration."""
        self.tensorboard.resumed_at = engine.state.iteration
        if self.csv_path.exists():
            keep_rows_until(self.csv_path, engine.state.iteration)

    def finish(self, engine: AdversarialTrainer) -> None:
        """One last point of the iterations since the last one; flushes the curves."""
        if self._counts:
            self.write_training(engine)
        self.tensorboard.close()

    def collect(self, engine: AdversarialTrainer) -> None:
        """Adds one iteration's losses and code counts to the interval's, without leaving the device."""
        for name, value in engine.state.output.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach()
            self._counts[name] = self._counts.get(name, 0) + 1
        self.codebook.add(engine.network.quantizer)

    def write_training(self, engine: AdversarialTrainer) -> None:
        """One point of every training curve."""
        values = {f"train/{name}": float(total) / self._counts[name] for name, total in self._sums.items()}
        values.pop("train/loss", None)
        values["train/learning_rate"] = self.optimizer.param_groups[0]["lr"]
        values |= self.codebook.figures()
        self._sums.clear()
        self._counts.clear()
        self._write(engine, values)

    def write_validation(self, validator: Engine, engine: AdversarialTrainer) -> None:
        """One point of every validation curve."""
        metrics = validator.state.metrics
        self._write(
            engine, {name: float(value) for name, value in metrics.items() if name.startswith("val/")}
        )

    def _write(self, engine: AdversarialTrainer, values: dict[str, float]) -> None:
        iteration = engine.state.iteration
        engine.state.figures |= values | {"iteration": iteration}
        engine.state.recon_loss = engine.state.figures.get("train/recon_loss", math.nan)
        engine.state.val_psnr = engine.state.figures.get("val/psnr", math.nan)
        for name, value in values.items():
            self.tensorboard.writer.add_scalar(name, value, iteration)
        listed = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        logger.info("epoch %d iteration %d  %s", engine.state.epoch, iteration, listed)
        is_new = not self.csv_path.exists()
        with self.csv_path.open("a", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, ("iteration", "epoch", *TAGS), extrasaction="ignore")
            if is_new:
                table.writeheader()
            table.writerow({"iteration": iteration, "epoch": engine.state.epoch, **values})


def keep_rows_until(csv_path: Path, iteration: int) -> None:
    """Drops the rows of a table of curves that come after `iteration`."""
    rows = csv_path.read_bytes().splitlines(keepends=True)
    numbers = [row.partition(b",")[0] for row in rows]
    later = [number.isdigit() and int(number) > iteration for number in numbers]
    if any(later):
        shorter = csv_path.with_name(f".{csv_path.name}.partial")
        shorter.write_bytes(b"".join(row for row, is_later in zip(rows, later, strict=True) if not is_later))
        shorter.replace(csv_path)


class CodebookWindow:
    """Health of the codebook over a window of iterations and all ranks, not just over the last batch."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Starts a new window."""
        self._counts: torch.Tensor | None = None
        self._restarts: torch.Tensor | float = 0.0
        self._updates = 0

    def add(self, quantizer: Quantizer) -> None:
        """Adds the counts and restarts of the quantizer's last update."""
        counts, restarts = quantizer.last_counts, quantizer.last_restarts
        if counts is None or restarts is None:
            return
        self._counts = counts if self._counts is None else self._counts + counts
        self._restarts = self._restarts + restarts
        self._updates += 1

    def figures(self) -> dict[str, float]:
        """Share of codes in use, perplexity, restarts per update; then the window starts anew."""
        if self._counts is None:
            return {}
        shares = self._counts.double() / self._counts.sum()
        used = shares[shares > 0]
        figures = {
            "codebook/usage": len(used) / len(shares),
            "codebook/perplexity": float(torch.exp(-(used * used.log()).sum())),
            "codebook/restarts": float(self._restarts) / self._updates,
        }
        self.reset()
        return figures
