"""Seconds per patch and peak memory of training, before and after the gate."""

from __future__ import annotations

import itertools
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ignite.engine import Events

from bundle.engines.optimizers import ScheduledAdam
from bundle.engines.trainer import AdversarialTrainer
from bundle.handlers.gate import IterationGate
from bundle.handlers.updates import DiscriminatorUpdate, GeneratorUpdate
from bundle.losses.objective import GeneratorObjective
from bundle.losses.perceptual import SlicePerceptualLoss
from bundle.networks.discriminators import build_discriminators
from bundle.networks.vqgan import build_vqgan


class Setting(NamedTuple):
    """What is measured."""

    preset: str
    side: int
    batch: int
    gate: int
    iterations: int


ON_GPU = Setting("default", side=128, batch=4, gate=100, iterations=200)
ON_CPU = Setting("lite", side=64, batch=1, gate=5, iterations=10)


def measure_training(output: Path) -> list[dict[str, Any]]:
    """Measures the default objective on random patches; LPIPS takes a random VGG, which costs the same."""
    cuda = torch.cuda.is_available()
    setting, device = (ON_GPU, torch.device("cuda")) if cuda else (ON_CPU, torch.device("cpu"))
    trainer = _make_trainer(setting, device)
    ends, peaks = [], []

    @trainer.on(Events.ITERATION_COMPLETED)
    def note() -> None:
        if cuda:
            torch.cuda.synchronize()
            peaks.append(torch.cuda.max_memory_allocated() / 2**20)
        ends.append(time.perf_counter())

    trainer.run()
    steps = [later - earlier for earlier, later in itertools.pairwise(ends)]
    phases = {"L1 only": slice(2, setting.gate - 1), "adversarial": slice(setting.gate + 1, None)}
    return [
        {
            "phase": phase,
            "preset": setting.preset,
            "patch": f"{setting.side}^3",
            "batch": setting.batch,
            "seconds per patch": statistics.median(steps[part]) / setting.batch,
            "peak MiB": max(peaks[part]) if cuda else None,
        }
        for phase, part in phases.items()
    ]


def _make_trainer(setting: Setting, device: torch.device) -> AdversarialTrainer:
    network = build_vqgan(setting.preset).to(device)
    discriminators = build_discriminators(1.0, 0.5, device=device)
    perceptual = SlicePerceptualLoss("vgg", "random").to(device)
    objective = GeneratorObjective(1.0, 0.25, 0.1, 1.0, 0.5, 4.0, discriminators, perceptual)
    gate = IterationGate(setting.gate)
    optimizers = [ScheduledAdam(part.parameters(), 1e-3) for part in (network, discriminators)]
    size = (setting.batch, 1, setting.side, setting.side, setting.side)
    return AdversarialTrainer(
        device,
        max_epochs=1,
        train_data_loader=itertools.repeat({"image": torch.rand(size).to(device) * 2 - 1}),
        epoch_length=setting.iterations,
        network=network,
        micro_batch_size=setting.batch,
        amp=True,
        train_handlers=[
            GeneratorUpdate(optimizers[0], objective, gate, gradient_clip=1.0),
            DiscriminatorUpdate(optimizers[1], objective, gate, gradient_clip=1.0),
        ],
    )
