"""Validates on whole volumes."""

import itertools
import logging
import math
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from torch import Tensor, nn

from bundle.data.volumes.window import to_hu
from bundle.distributed.collectives import gather, is_distributed
from bundle.distributed.ranks import wait_for_ranks
from bundle.engines.trainer import AdversarialTrainer
from bundle.metrics.perceptual import slice_lpips
from bundle.metrics.reconstruction import reconstruction_figures
from bundle.run.rules import check

logger = logging.getLogger(__name__)


class ReconstructionQuality(Metric):
    """Averages PSNR, SSIM, MAE and RMSE in HU and the grid over volumes, and LPIPS if a backbone is there.

    The metric's own value is PSNR, which ranks checkpoints; all figures go to `state.metrics` as `val/...`.
    Ranks that share the volumes (`bundle.data.patches.dataset.VolumeShare`) all get the figures of all.

    Args:
        hu_min: lower end of the window in HU.
        hu_max: upper end; the window's width is the data range of PSNR and SSIM.
        perceptual: LPIPS on slices, taken on at most 16 axial slices per volume; None leaves it out.
        compare_on: device on which volumes are compared, slab by slab; None is where they are.

    Attributes:
        CURVES: what it puts into `state.metrics`.
    """

    MEASURED = ("psnr", "ssim", "mae_hu", "rmse_hu", "grid")
    CURVES = tuple(f"val/{name}" for name in (*MEASURED, "lpips"))

    def __init__(
        self,
        hu_min: float,
        hu_max: float,
        perceptual: nn.Module | None = None,
        compare_on: torch.device | str | None = None,
    ) -> None:
        self.hu_min, self.hu_max = hu_min, hu_max
        self.perceptual = perceptual
        self.compare_on = compare_on
        super().__init__(output_transform=lambda output: output)

    def reset(self) -> None:
        """Forgets all volumes."""
        self.volumes: list[dict[str, float]] = []

    def update(self, output: list[dict[str, Any]]) -> None:
        """Adds volumes: dictionaries with `image` and `pred`, (1, X, Y, Z) in [-1, 1]."""
        for item in output:
            image, pred = (item[key].as_subclass(Tensor).float() for key in ("image", "pred"))
            window = self.hu_min, self.hu_max
            volumes = to_hu(image[0], *window), to_hu(pred[0].clamp(-1, 1), *window)
            figures = reconstruction_figures(*volumes, self.hu_min, self.hu_max, device=self.compare_on)
            self.volumes.append({name: getattr(figures, name) for name in self.MEASURED})
            if self.perceptual is not None:
                self.volumes[-1]["lpips"] = slice_lpips(self.perceptual, image, pred.clamp(-1, 1))

    def compute(self) -> float:
        """Returns the mean PSNR in dB."""
        return self.means()["psnr"]

    def means(self) -> dict[str, float]:
        """Returns the mean of every figure over the volumes seen; `grid` over those that are large enough."""
        means = {
            name: sum(float(volume[name]) for volume in self.volumes) / len(self.volumes)
            for name in self.volumes[0]
        }
        grids = [volume["grid"] for volume in self.volumes if not math.isnan(volume["grid"])]
        means.pop("grid")
        return means | ({"grid": sum(grids) / len(grids)} if grids else {})

    def completed(self, engine: Engine, name: str) -> None:
        """Puts all means into the engine's metrics.

        Raises:
            ValidationStopped: if another rank has stopped.
        """
        if is_distributed():
            loader: Any = engine.state.dataloader
            self.volumes = _of_all_ranks(self.volumes, len(loader.dataset))
        super().completed(engine, name)
        engine.state.metrics.update({f"val/{figure}": mean for figure, mean in self.means().items()})


def _of_all_ranks(volumes: list[dict[str, float]], count: int) -> list[dict[str, float]]:
    """Gathers the figures of all volumes in the order of one process.

    Args:
        volumes: those of this rank; a rank without any of its own has evaluated one of another rank's.
        count: number of all volumes.

    Raises:
        ValidationStopped: if a rank has none to give, because it was stopped.
    """
    shares = _exchange(volumes)
    if not all(shares):
        raise ValidationStopped("another rank was stopped", is_known=True)
    rounds = itertools.zip_longest(*shares)
    return [volume for together in rounds for volume in together if volume is not None][:count]


def _exchange(volumes: list[dict[str, float]]) -> list[list[dict[str, float]]]:
    """Gathers what each rank has found; every rank calls it once per validation, even if stopped.

    Ranks may finish at very different times, so they first wait, longer than an exchange would.
    """
    wait_for_ranks()
    return gather(volumes)


class ValidationStopped(BaseException):
    """Ends a validation where it is; it is no `Exception`, so nothing on its way takes it for a failure.

    Args:
        told: why.
        is_known: whether the other ranks know.
    """

    def __init__(self, told: str, is_known: bool = False) -> None:
        super().__init__(told)
        self.is_known = is_known


class ValidateEvery:
    """Validates after every `interval` epochs, and once more when training ends.

    A run of fewer epochs than `interval` is never validated: such an interval means no validation.

    A resumed run first repeats a validation that was due and was not completed. The state goes into
    checkpoints.

    Args:
        interval: in epochs.
        at_start: whether to validate before the first iteration too. A run that starts from weights does, so
            that its curves begin with the figures of these weights.
    """

    def __init__(self, interval: int, at_start: bool = False) -> None:
        check(val_interval=interval)
        self.interval = interval
        self.at_start = at_start
        self._validated_at = -1

    def attach(self, engine: AdversarialTrainer) -> None:
        """Joins a trainer with a validator; attach it before the handlers that log and save its figures."""
        if engine.validator is None:
            return
        engine.keep("validation", self)
        engine.validator.add_event_handler(Events.COMPLETED, self._remember, engine)
        engine.add_event_handler(Events.EPOCH_STARTED, self.make_up)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self)
        engine.add_event_handler(Events.COMPLETED, self.validate_at_end)

    def validate_at_end(self, engine: AdversarialTrainer) -> None:
        """Validates the final weights, unless the whole run is shorter than the interval."""
        if self._is_wanted(engine):
            self(engine)
        else:
            logger.info(
                "No validation: `val_interval` %d is more than `max_epochs` %d; there is no best_1.pt",
                *(self.interval, engine.state.max_epochs),
            )

    def __call__(self, engine: AdversarialTrainer) -> None:
        """Validates the present weights, unless they have been validated already."""
        validator = engine.validator
        if validator is not None and self._validated_at != engine.state.iteration:
            validator.state.trainer_iteration = engine.state.iteration
            try:
                validator.run()
            except ValidationStopped as stopped:
                if not stopped.is_known:
                    _exchange([])
                engine.terminate(skip_completed=True)
            finally:  # they hold the last volume
                validator.state.output = validator.state.batch = None

    def make_up(self, engine: AdversarialTrainer) -> None:
        """Validates the weights that a run starts from.

        A resumed run repeats a validation that was due there, unless it had been completed.
        """
        iteration = engine.state.iteration
        if iteration == 0 and self.at_start and self._is_wanted(engine):
            self(engine)
        elif iteration > 0 and iteration % (self.interval * int(engine.state.epoch_length or 1)) == 0:
            self(engine)

    def state_dict(self) -> dict[str, int]:
        """Returns the iteration that was validated last."""
        return {"validated_at": self._validated_at}

    def load_state_dict(self, content: dict[str, int]) -> None:
        """Restores what `state_dict` returned."""
        self._validated_at = content["validated_at"]

    def _is_wanted(self, engine: Engine) -> bool:
        return self.interval <= int(engine.state.max_epochs or 1)

    def _remember(self, validator: Engine, engine: Engine) -> None:
        self._validated_at = engine.state.iteration
