"""Protects a run from numbers that are not finite."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from torch import Tensor

from bundle.checkpoints.file import read_checkpoint
from bundle.checkpoints.folder import newest_sound_checkpoint
from bundle.checkpoints.state import TrainingState
from bundle.distributed.collectives import all_reduce, gather, is_distributed, on_first_rank
from bundle.distributed.ranks import rank, wait_for_ranks
from bundle.engines.advice import ADVICE
from bundle.engines.events import AdversarialEvents
from bundle.engines.trainer import AdversarialTrainer
from bundle.run.record import note_event
from bundle.run.rules import check

logger = logging.getLogger(__name__)

MAX_ROLLBACKS = 3


class DivergenceError(ValueError):
    """A run whose losses or gradients stay infinite or undefined; the message says what to do."""


class HealthGuard:
    """Skips iterations whose losses or gradients are not finite; rolls back or stops after too many in a row.

    A skipped iteration counts as an iteration, but moves no weights, moments, codes or learning rates.
    Rolling back restores networks, optimizers and codebook from the newest undamaged checkpoint and lowers
    the learning rates; the iteration count and the data go on. All ranks decide alike. Per iteration one
    number leaves the device, and the GPU waits until the host has read it and launched the optimizer steps.

    Args:
        state: what rolling back restores.
        output_dir: of the run, with its checkpoints.
        policy: `rollback` or `stop`.
        patience: iterations in a row that may be skipped before the policy acts.
        learning_rate_ratio: share of the learning rates that is left after rolling back, at most 3 times.
        note_event: called with `kind` and details of what happens, for `run.json`.
    """

    def __init__(
        self,
        state: TrainingState,
        output_dir: str | Path,
        policy: str = "rollback",
        patience: int = 10,
        learning_rate_ratio: float = 0.5,
        note_event: Callable[..., None] = note_event,
    ) -> None:
        check(
            nonfinite_policy=policy,
            nonfinite_patience=patience,
            rollback_learning_rate_ratio=learning_rate_ratio,
        )
        self.state = state
        self.folder = Path(output_dir) / "checkpoints"
        self.policy = policy
        self.patience = patience
        self.learning_rate_ratio = learning_rate_ratio
        self.note_event = note_event
        self.skipped = self.in_a_row = self.rollbacks = 0
        self._moved_here = self._skipped_here = 0

    def attach(self, engine: AdversarialTrainer) -> None:
        """Joins the engine where all gradients are complete and nothing has moved yet."""
        engine.keep("health_guard", self)
        self._rates = {name: optimizer.base_rates for name, optimizer in self.state.optimizers.items()}
        engine.add_event_handler(Events.STARTED, lambda: self._set_learning_rates())
        engine.add_event_handler(AdversarialEvents.GRADIENTS_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.require_progress)

    def state_dict(self) -> dict[str, int]:
        """Returns the counts for checkpoints."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row, "rollbacks": self.rollbacks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.skipped, self.in_a_row = int(state["skipped"]), int(state["in_a_row"])
        self.rollbacks = int(state["rollbacks"])

    def __call__(self, engine: AdversarialTrainer) -> None:
        """Decides whether the iteration's steps are taken."""
        values = _watched(engine)
        if _all_finite(list(values.values())):
            self.in_a_row, self._moved_here = 0, self._moved_here + 1
            return
        self._skipped_here += 1
        engine.current.skip_steps = True
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        ill = _names_of_ill(engine, values)
        logger.warning(
            "Iteration %d is skipped, %d in a row: %s not finite", engine.state.iteration, self.in_a_row, ill
        )
        if self.in_a_row == 1:
            self._note(engine, "non_finite", what=ill, skipped_so_far=self.skipped)
        if self.in_a_row >= self.patience:
            self._act(engine, ill)

    def require_progress(self, engine: AdversarialTrainer) -> None:
        """Fails a run that comes to its end without one finite iteration.

        Raises:
            DivergenceError: saying what to do.
        """
        if self._skipped_here and not self._moved_here:
            raise DivergenceError(
                f"iteration {engine.state.iteration}: the run is over and moved no weight, since losses or "
                f"gradients were not finite in all of its {self._skipped_here} iterations; "
                f"{ADVICE['non_finite'].change}"
            )

    def _act(self, engine: AdversarialTrainer, ill: str) -> None:
        diagnosis = (
            f"iteration {engine.state.iteration}: {ill} not finite for {self.in_a_row} iterations in a row"
            f"{_after(self.rollbacks)}; {ADVICE['non_finite'].change}"
        )
        path = on_first_rank(self._checkpoint_to_go_back_to)
        if path is None:
            raise DivergenceError(diagnosis)
        iteration = restore_weights(self.state, path)
        wait_for_ranks()  # rank 0 may rename the file in this very iteration
        self.rollbacks, self.in_a_row = self.rollbacks + 1, 0
        self._set_learning_rates()
        logger.warning(
            "%s. Weights, optimizers and codebook are back at iteration %d (%s), learning rates at %g of the "
            "config's", diagnosis, iteration, path.name, self.learning_rate_factor,
        )  # fmt: skip
        self._note(engine, "rollback", back_to=iteration, learning_rate_factor=self.learning_rate_factor)

    def _checkpoint_to_go_back_to(self) -> Path | None:
        may_go_back = self.policy == "rollback" and self.rollbacks < MAX_ROLLBACKS
        return newest_sound_checkpoint(self.folder) if may_go_back else None

    @property
    def learning_rate_factor(self) -> float:
        """Returns the share of the config's learning rates that is left."""
        return self.learning_rate_ratio**self.rollbacks

    def _set_learning_rates(self) -> None:
        """Sets the rates of config and schedules times the factor; does nothing before the first rollback."""
        if self.rollbacks == 0:
            return
        for name, optimizer in self.state.optimizers.items():
            optimizer.set_base_rates([rate * self.learning_rate_factor for rate in self._rates[name]])

    def _note(self, engine: AdversarialTrainer, kind: str, **details: Any) -> None:
        self.note_event(
            kind=kind, iteration=engine.state.iteration, **details, advice=ADVICE["non_finite"].change
        )


def restore_weights(state: TrainingState, path: Path) -> int:
    """Loads networks with their codebook, and optimizers; counters, schedules and random states stay.

    Returns:
        The iteration that they are from.
    """
    content = read_checkpoint(path)
    state.network.load_state_dict(content["model"])
    state.discriminators.load_state_dict(content["discriminators"])
    for name, optimizer in state.optimizers.items():
        optimizer.load_state_dict(content["optimizers"][name])
    return int(content["trainer"]["iteration"])


def _watched(engine: AdversarialTrainer) -> dict[str, Tensor]:
    """Returns one scalar per loss and per gradient; each is finite only if all its values are."""
    losses = {
        name: engine.current.losses[name] for name in ("loss", "disc_loss") if name in engine.current.losses
    }
    return losses | {f"gradient of the {step.name}": step.norm for step in engine.current.steps}


def _all_finite(values: list[Tensor]) -> bool:
    ill = torch.stack([value.detach().float().reshape(()) for value in values]).isfinite().logical_not().sum()
    all_reduce(ill)
    return int(ill) == 0


def _names_of_ill(engine: AdversarialTrainer, values: dict[str, Tensor]) -> str:
    batch = f"the batch of rank {rank()}" if is_distributed() else "the batch itself"
    looked_at = {batch: engine.state.batch["image"], **values}
    names = gather([name for name, value in looked_at.items() if not bool(value.isfinite().all())])
    return ", ".join(dict.fromkeys(name for of_rank in names for name in of_rank))


def _after(rollbacks: int) -> str:
    return f", after {rollbacks} rollbacks" if rollbacks else ""
