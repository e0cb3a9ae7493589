"""Gathers what a checkpoint keeps of a run: networks, optimizers, schedules, counters, random generators."""

import logging
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from bundle.checkpoints.recipe import BASE, ITERATIONS, plain_facts
from bundle.checkpoints.trained_on import TrainedOn, joined
from bundle.engines.optimizers import ScheduledAdam
from bundle.engines.trainer import AdversarialTrainer

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")


class TrainingState:
    """Gathers all that a checkpoint has to hold of a run, by name.

    Handlers and other parts add theirs through `AdversarialTrainer.keep`.

    Args:
        network: the generator.
        settings: `network_settings` of this run.
        discriminators: may be empty.
        optimizers: by name; None stands for a network that this run does not have.
        trained_on: returns which patients and volumes the networks see in this run; called when the first
            checkpoint is written; see `TrainedOn`. None: nothing is recorded.
        recipe: settings by which runs can be compared, such as the seed; numbers and lists of them.

    Attributes:
        trained_on_before: what the networks saw before this run, from the checkpoint that it started from.
        base: fingerprint of the weights that this run started from; "" for random ones, None if unknown.
        learning_rate_share: share of the config's learning rate that the generator trains at; see
            `scale_learning_rate`.
    """

    def __init__(
        self,
        network: nn.Module,
        settings: dict[str, Any],
        discriminators: nn.ModuleDict,
        optimizers: dict[str, ScheduledAdam | None],
        trained_on: Callable[[], TrainedOn] | None = None,
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        self.network = network
        self.settings = settings
        self.discriminators = discriminators
        self.optimizers = {name: part for name, part in optimizers.items() if part is not None}
        self._trained_on = trained_on
        self._trained_on_here: TrainedOn | None = None
        self.trained_on_before: TrainedOn = {}
        self._recipe = plain_facts(recipe or {})
        self.base: str | None = ""
        self.learning_rate_share = 1.0

    @property
    def _device(self) -> torch.device:
        return next((parameter.device for parameter in self.network.parameters()), CPU)

    def trained_on(self) -> TrainedOn:
        """Returns all that the networks have seen, in this run and before it."""
        if self._trained_on_here is None:
            self._trained_on_here = self._trained_on() if self._trained_on else {}
        return joined(self.trained_on_before, self._trained_on_here)

    def recipe(self, iteration: int) -> dict[str, Any]:
        """Returns how the weights were trained; see `bundle.checkpoints.recipe`."""
        known = {} if self.base is None else {BASE: self.base}
        return self._recipe | known | {ITERATIONS: iteration}

    def scale_learning_rate(self, share: float) -> None:
        """Sets the share of the config's learning rate that the generator trains at, for the whole run."""
        factor, self.learning_rate_share = share / self.learning_rate_share, float(share)
        optimizer = self.optimizers.get("generator")
        if optimizer is not None:
            optimizer.set_base_rates([rate * factor for rate in optimizer.base_rates])

    def take_moments(self, content: dict[str, Any]) -> bool:
        """Takes over the generator's Adam moments from a checkpoint, and nothing else.

        Returns:
            whether the checkpoint has moments that fit.
        """
        optimizer = self.optimizers.get("generator")
        saved = content.get("optimizers", {}).get("generator", {})
        moments = saved.get("state") if isinstance(saved, dict) else None
        if optimizer is None or not isinstance(moments, dict):
            return False
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        fit = len(moments) == len(parameters) and all(
            isinstance(slot := moments.get(number), dict)
            and all(
                isinstance(slot.get(name), torch.Tensor) and slot[name].shape == parameter.shape
                for name in ("exp_avg", "exp_avg_sq")
            )
            for number, parameter in enumerate(parameters)
        )
        if fit:
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": moments, "param_groups": groups})
        return fit

    def state_dict(self, engine: AdversarialTrainer) -> dict[str, Any]:
        """Returns tensors and plain numbers only, so that the file loads with `weights_only=True`."""
        return {
            "model": self.network.state_dict(),
            "network": self.settings,
            "trained_on": self.trained_on(),
            "recipe": self.recipe(engine.state.iteration),
            "discriminators": self.discriminators.state_dict(),
            "optimizers": {name: part.state_dict() for name, part in self.optimizers.items()},
            "schedules": {
                name: {"last_epoch": part.schedule.last_epoch} for name, part in self.optimizers.items()
            },
            "trainer": {
                "iteration": engine.state.iteration,
                "epoch_length": engine.state.epoch_length,
                "max_epochs": engine.state.max_epochs,
                "learning_rate_share": self.learning_rate_share,
            },
            "random": random_state(self._device),
            "extras": {name: part.state_dict() for name, part in engine.extras.items()},
        }

    def load_state_dict(self, content: dict[str, Any], engine: AdversarialTrainer) -> None:
        """Restores all that `state_dict` holds except `max_epochs`, which a resumed run may extend.

        Learning rates follow from this run's own schedules, so that a resumed run may change them.
        """
        self.network.load_state_dict(content["model"])
        self.trained_on_before = content.get("trained_on", {})
        self.base = content.get("recipe", {}).get(BASE)
        self.discriminators.load_state_dict(content["discriminators"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(content["optimizers"][name])
            optimizer.set_base_rates(optimizer.base_rates, content["schedules"][name]["last_epoch"])
        engine.state.iteration = content["trainer"]["iteration"]
        engine.state.epoch = engine.state.iteration // engine.state.epoch_length
        set_random_state(content["random"], self._device)
        known = content.get("extras", {})
        for name in engine.extras.keys() & known.keys():
            engine.extras[name].load_state_dict(known[name])


def random_state(device: torch.device = CPU) -> dict[str, Any]:
    """Returns the states of the random generators of Python, NumPy, torch and a GPU.

    All ranks are in the same state, so that of one rank is enough.

    Args:
        device: its generator's state is included if it is a GPU.

    Returns:
        tensors and plain numbers by name.
    """
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
        "cuda": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],
    }


def set_random_state(state: dict[str, Any], device: torch.device = CPU) -> None:
    """Restores what `random_state` returned; if it holds the states of several GPUs, this GPU's is taken."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["numbers"]), python["gauss"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state((numpy["name"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"]:
        torch.cuda.set_rng_state(state["cuda"][min(device.index or 0, len(state["cuda"]) - 1)], device)
    elif device.type == "cuda":
        logger.warning("The checkpoint was written on a CPU: the random numbers of %s begin again", device)
