"""Seconds per patch and peak memory of training, before and after the gate."""

from __future__ import annotations

import itertools
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events

from bundle.engines.optimizers import build_optimizer
from bundle.engines.trainer import AdversarialTrainer
from bundle.handlers.discriminator_update import DiscriminatorUpdate
from bundle.handlers.generator_update import GeneratorUpdate
from bundle.handlers.iteration_gate import IterationGate
from bundle.losses.objective import GeneratorObjective
from bundle.losses.perceptual import SlicePerceptualLoss
from bundle.networks.discriminators import build_discriminators
from bundle.networks.vqgan import TrainingPass, build_vqgan, to_device


def measure_training(output: Path) -> list[dict[str, Any]]:
    """The default objective on random patches; LPIPS runs on a random VGG, which costs the same."""
    cuda = torch.cuda.is_available()
    preset, side, batch, gate, iterations = ("default", 128, 4, 100, 200) if cuda else ("lite", 64, 1, 5, 10)
    device = torch.device("cuda" if cuda else "cpu")
    network = to_device(build_vqgan(preset), device)
    discriminators = to_device(build_discriminators(1.0, 0.5), device)
    objective = GeneratorObjective(
        1.0, 0.25, 0.1, 1.0, 0.5, 4.0, discriminators, SlicePerceptualLoss("vgg", "random").to(device)
    )
    opens = IterationGate(gate)
    handlers = [
        GeneratorUpdate(build_optimizer(network, 3e-4), objective, opens, gradient_clip=1.0),
        DiscriminatorUpdate(build_optimizer(discriminators, 1e-4), discriminators, 1.0, 0.5, opens),
    ]
    image = torch.rand(batch, 1, side, side, side).to(device) * 2 - 1
    trainer = AdversarialTrainer(
        device, 1, itertools.repeat({"image": image}), iterations, network, TrainingPass(network), batch,
        amp=True, train_handlers=handlers,
    )  # fmt: skip
    ends, peaks = [], []

    @trainer.on(Events.ITERATION_COMPLETED)
    def note() -> None:
        if cuda:
            torch.cuda.synchronize()
            peaks.append(torch.cuda.max_memory_allocated() / 2**20)
        ends.append(time.perf_counter())

    trainer.run()
    steps = [later - earlier for earlier, later in itertools.pairwise(ends)]
    rows = []
    for phase, part in {"L1 only": slice(2, gate - 1), "adversarial": slice(gate + 1, None)}.items():
        seconds = statistics.median(steps[part])
        rows.append(
            {
                "phase": phase,
                "preset": preset,
                "patch": f"{side}^3",
                "batch": batch,
                "seconds per patch": seconds / batch,
                "peak MiB": max(peaks[part]) if cuda else None,
            }
        )
    return rows
