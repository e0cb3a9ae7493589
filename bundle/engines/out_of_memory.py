"""Handles a training iteration that runs out of memory: the run ends with advice, or needs less."""

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from bundle.distributed.collectives import any_rank
from bundle.engines.advice import ADVICE
from bundle.inferers.tile_size import is_out_of_memory
from bundle.run.record import note_event
from bundle.run.rules import check

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")


class TrainingMemoryError(ValueError):
    """A training iteration that does not fit into memory; the message says what to change."""


class MemoryFallback:
    """Repeats an iteration that ran out of memory so that it needs less, or ends the run with advice.

    With `degrade` the micro-batch is halved down to 1, which changes only the last bits of results; then the
    volume discriminator and then LPIPS are left out, as if their weights were 0. Each step lasts for the rest
    of the run, also after it is resumed. A repeated iteration sees the same batch and the same random
    numbers. Ranks take each step together: if it does not fit on one, all repeat.

    Args:
        oom_policy: `stop` or `degrade`.
        video_gan_weight: above 0, the volume discriminator can be left out.
        perceptual_weight: above 0, LPIPS can be left out.
        note_event: called with `kind` and details of each step, for `run.json`.

    Attributes:
        switched_off: what is left out, `video` and `perceptual`.
    """

    def __init__(
        self,
        oom_policy: str = "stop",
        video_gan_weight: float = 0.0,
        perceptual_weight: float = 0.0,
        note_event: Callable[..., None] = note_event,
    ) -> None:
        check(oom_policy=oom_policy)
        self.oom_policy = oom_policy
        weights = {"video": video_gan_weight, "perceptual": perceptual_weight}
        self.can_switch_off = [name for name, weight in weights.items() if weight > 0]
        self.note_event = note_event
        self.halvings = 0
        self.switched_off: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        """Returns the state for checkpoints: a resumed run needs no more memory than before."""
        return {"halvings": self.halvings, "switched_off": list(self.switched_off)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.halvings, self.switched_off = int(state["halvings"]), list(state["switched_off"])

    def micro_batch_size(self, configured: int) -> int:
        """Returns the samples per forward pass after all halvings so far."""
        return max(1, configured >> self.halvings)

    def run(
        self,
        attempt: Callable[[], Any],
        iteration: int,
        batch_size: int,
        configured: int,
        device: torch.device = CPU,
    ) -> Any:
        """Calls `attempt` until it fits on all ranks, and returns what it gave.

        Args:
            attempt: a part of an iteration in which ranks do not meet, and no weight moves; it starts over
                when it is called again.
            iteration: its number, for the record.
            batch_size: samples in it.
            configured: the config's `micro_batch_size`.
            device: whose random numbers a repeated attempt draws again.

        Raises:
            TrainingMemoryError: if it does not fit and may not or cannot become smaller.
        """
        random = self._random_state(device)
        while True:
            fits, result = self._try(attempt)
            if self.oom_policy == "stop" or not any_rank(not fits):
                return result
            result = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._restore(random, device)
            self._degrade(iteration, min(batch_size, configured))

    @contextmanager
    def no_repeat(self) -> Iterator[None]:
        """Guards what cannot be repeated, such as half of the optimizers' steps.

        Raises:
            TrainingMemoryError: if it does not fit into memory.
        """
        try:
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingMemoryError(self._advice(error, " (in a part that cannot be repeated)")) from error

    def _try(self, attempt: Callable[[], Any]) -> tuple[bool, Any]:
        """Returns whether the attempt fits on this rank, and its result."""
        try:
            return True, attempt()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if self.oom_policy == "stop":
                raise TrainingMemoryError(self._advice(error, "")) from error
            return False, None

    def _degrade(self, iteration: int, configured: int) -> None:
        left = [name for name in self.can_switch_off if name not in self.switched_off]
        if self.micro_batch_size(configured) > 1:
            self.halvings += 1
            step = f"micro-batch halved to {self.micro_batch_size(configured)} (same gradients)"
        elif left:
            self.switched_off.append(left[0])
            named = {"video": "the volume discriminator", "perceptual": "LPIPS"}[left[0]]
            step = f"{named} is left out from now on"
        else:
            raise TrainingMemoryError(
                f"iteration {iteration} does not fit into memory with a micro-batch of 1 and nothing left to "
                "leave out; lower `patch_size` or take a smaller `preset`"
            )
        logger.warning("Iteration %d ran out of memory: %s; it is repeated", iteration, step)
        self.note_event(kind="out_of_memory", iteration=iteration, step=step)

    @staticmethod
    def _advice(error: BaseException, why: str) -> str:
        return f"out of memory{why}: {ADVICE['out_of_memory'].change}. Torch says: {error}"

    @staticmethod
    def _random_state(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
        return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @staticmethod
    def _restore(random: tuple[torch.Tensor, torch.Tensor | None], device: torch.device) -> None:
        torch.set_rng_state(random[0])
        if random[1] is not None:
            torch.cuda.set_rng_state(random[1], device)
