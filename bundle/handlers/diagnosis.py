"""Warns once, with advice, when adversarial training goes wrong in one of the known ways."""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events

from bundle.engines.advice import ADVICE
from bundle.engines.trainer import AdversarialTrainer
from bundle.handlers.codebook_window import CodebookWindow
from bundle.handlers.gate import IterationGate
from bundle.run.record import note_event
from bundle.run.rules import check

logger = logging.getLogger(__name__)


class HealthWatch:
    """Looks at means over windows of iterations and at validation figures; changes nothing.

    Adversarial losses are divided by the sum of the discriminators' weights, so that a fresh discriminator's
    is near 1 and the generator's is minus the mean logit. After a resume the first window is shorter.

    Args:
        gate: from when on the generator should improve.
        weights: of the discriminators, by name.
        window: iterations.
        disc_loss_floor: a discriminator loss below it means that the discriminators have won.
        explosion_ratio: an adversarial loss above it, or a reconstruction loss above this many times its
            best, is an explosion.
        codebook_floor: a perplexity over K below it means that the codebook has collapsed.
        no_improvement_validations: this many validations in a row behind the gate without a better
            `val/psnr` or `val/lpips` are reported.
        note_event: called with `kind` and details, for `run.json`.
    """

    def __init__(
        self,
        gate: IterationGate,
        weights: Mapping[str, float],
        window: int = 500,
        disc_loss_floor: float = 0.02,
        explosion_ratio: float = 10.0,
        codebook_floor: float = 0.01,
        no_improvement_validations: int = 10,
        note_event: Callable[..., None] = note_event,
    ) -> None:
        check(
            health_window=window,
            disc_loss_floor=disc_loss_floor,
            explosion_ratio=explosion_ratio,
            codebook_floor=codebook_floor,
            no_improvement_validations=no_improvement_validations,
        )
        self.gate, self.window = gate, window
        self.scale = sum(weights.values())
        self.disc_loss_floor, self.explosion_ratio = disc_loss_floor, explosion_ratio
        self.codebook_floor, self.no_improvement_validations = codebook_floor, no_improvement_validations
        self.note_event = note_event
        self.reported: list[str] = []
        self.best = {"recon_loss": math.inf, "val/psnr": -math.inf, "val/lpips": math.inf}
        self.validations = 0  # in a row behind the gate, none of them better than all before
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}
        self._codebook = CodebookWindow()

    def attach(self, engine: AdversarialTrainer) -> None:
        """Joins the trainer, and its validator if there is one."""
        engine.keep("health_watch", self)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.window), self.judge)
        if engine.validator is not None:
            engine.validator.add_event_handler(Events.COMPLETED, self.judge_validation, engine)

    def state_dict(self) -> dict[str, Any]:
        """Returns for checkpoints which warnings were given, and the best figures so far."""
        return {
            "reported": list(self.reported),
            "best": dict(self.best),
            "validations": self.validations,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.reported, self.best = list(state["reported"]), dict(state["best"])
        self.validations = int(state["validations"])

    def collect(self, engine: AdversarialTrainer) -> None:
        """Adds one iteration without leaving the device."""
        for name in ("recon_loss", "gen_loss", "disc_loss"):
            if name in engine.current.losses:
                self._sums[name] = self._sums.get(name, 0.0) + engine.current.losses[name]
                self._counts[name] = self._counts.get(name, 0) + 1
        self._codebook.add(engine.network.quantizer)

    def judge(self, engine: AdversarialTrainer) -> None:
        """Judges the means of the window that ends here, in one transfer from the device."""
        figures = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        figures |= self._codebook.figures()
        self._sums.clear()
        self._counts.clear()
        self._judge_discriminators(engine, figures.get("disc_loss", math.nan) / (self.scale or 1))
        self._judge_generator(engine, figures)
        share = figures.get("codebook/perplexity", math.nan) / engine.network.quantizer.num_embeddings
        if share < self.codebook_floor:
            self._report(engine, "codebook_collapse", f"perplexity is {share:.2%} of the number of codes")

    def judge_validation(self, validator: Engine, engine: AdversarialTrainer) -> None:
        """Counts validations behind the gate since the last one that was better than all before it."""
        improved = False
        for name, sign in (("val/psnr", 1), ("val/lpips", -1)):
            value = float(validator.state.metrics.get(name, math.nan))
            if sign * value > sign * self.best[name]:
                self.best[name], improved = value, True
        is_behind = self.gate.generator_share(engine.state.iteration) > 0 and self.scale > 0
        self.validations = self.validations + 1 if is_behind and not improved else 0
        if self.validations >= self.no_improvement_validations:
            told = f"none of the last {self.validations} validations behind the gate was better than before"
            self._report(engine, "no_improvement", told)

    def _judge_discriminators(self, engine: AdversarialTrainer, loss: float) -> None:
        if loss > self.explosion_ratio:
            self._report(engine, "discriminator_explodes", f"mean loss {loss:.3g} of about 1 at the start")
        if loss < self.disc_loss_floor:
            self._report(engine, "discriminator_dead", f"mean loss {loss:.3g} of about 1 at the start")

    def _judge_generator(self, engine: AdversarialTrainer, figures: Mapping[str, float]) -> None:
        logit = -figures.get("gen_loss", math.nan) / (self.scale or 1)
        if abs(logit) > self.explosion_ratio:
            self._report(engine, "generator_explodes", f"logits are saturated: {logit:.3g} on average")
        loss = figures.get("recon_loss", math.nan)
        if loss > self.explosion_ratio * self.best["recon_loss"]:
            told = f"mean reconstruction loss {loss:.3g}, once {self.best['recon_loss']:.3g}"
            self._report(engine, "generator_explodes", told)
        self.best["recon_loss"] = min(self.best["recon_loss"], loss if math.isfinite(loss) else math.inf)

    def _report(self, engine: AdversarialTrainer, kind: str, told: str) -> None:
        """Warns once in the life of a run."""
        if kind in self.reported:
            return
        self.reported.append(kind)
        what, change = ADVICE[kind]
        iteration = engine.state.iteration
        logger.warning("Iteration %d: %s (%s). What to change: %s", iteration, what, told, change)
        self.note_event(kind=kind, iteration=iteration, told=told, advice=change)
