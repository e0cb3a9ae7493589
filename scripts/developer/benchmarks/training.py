"""Measures seconds per patch and peak memory of training, before and after the opening of the gate."""

from __future__ import annotations

import itertools
import json
import statistics
import time
import warnings
from collections.abc import Callable
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
from bundle.run.console import tell
from scripts.developer.benchmarks.measuring import DEVICE, has_time
from scripts.developer.benchmarks.peers import (
    ALL,
    AS_SHIPPED,
    L1_ONLY,
    Options,
    Terms,
    in_turns,
    ours,
    random_image,
    setting_of_device,
)


class Setting(NamedTuple):
    """What is measured."""

    preset: str
    side: int
    batch: int
    gate: int
    iterations: int


ON_GPU = Setting("default", side=128, batch=4, gate=100, iterations=200)
ON_CPU = Setting("lite", side=64, batch=1, gate=5, iterations=10)
TINY = Setting("lite", side=32, batch=1, gate=4, iterations=7)  # to try the program

# Each variant leaves something out, or does it otherwise, than the iteration with all losses.
VARIANTS: dict[str, tuple[Terms, Options]] = {
    "L1 only": (L1_ONLY, AS_SHIPPED),
    "below the gate": (ALL._replace(is_gate_open=False), AS_SHIPPED),
    "without LPIPS": (ALL._replace(perceptual=0.0), AS_SHIPPED),
    "without the slice discriminator": (ALL._replace(image=0.0), AS_SHIPPED),
    "without the volume discriminator": (ALL._replace(video=0.0), AS_SHIPPED),
    "without feature matching": (ALL._replace(features=0.0), AS_SHIPPED),
    "LPIPS in bf16": (ALL, Options(perceptual_in_bf16=True)),
    "slice discriminator channels-last": (ALL, Options(slices_last=True)),
    "Adam not fused": (ALL, Options(is_fused=False)),
    "generator compiled": (ALL, Options(is_compiled=True)),
}


def measure_variants(output: Path, tiny: bool = False) -> list[dict[str, Any]]:
    """Measures where the time of an iteration with all losses goes: each variant alternates with it.

    A GPU also says how often an iteration makes Python wait for it.
    """
    setting, preset = setting_of_device(tiny)
    image, rows = random_image(setting), []
    for name, (terms, options) in VARIANTS.items():
        if not has_time() or (options.is_compiled and DEVICE.type != "cuda"):
            continue
        torch.manual_seed(0)
        sides = {
            "all": ours(preset, setting, ALL, image),
            "variant": ours(preset, setting, terms, image, options),
        }
        seconds, memory = in_turns(sides, setting.rounds)
        rows.append(
            {
                "variant": name,
                "seconds": seconds["variant"],
                "all losses, seconds": seconds["all"],
                "all losses, times as long": seconds["all"] / seconds["variant"],
                "MiB": memory["variant"],
                "all losses, MiB": memory["all"],
                "waits for the GPU": _waits(sides["variant"]),
            }
        )
        tell(json.dumps(rows[-1]), flush=True)
    return rows


def _waits(step: Callable[[], Any]) -> int | None:
    """Counts how often an iteration makes Python wait for the GPU; None on a CPU."""
    if DEVICE.type != "cuda":
        return None
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in told)


def measure_training(output: Path, tiny: bool = False) -> list[dict[str, Any]]:
    """Measures the default objective on random patches; LPIPS takes a random VGG, which costs the same."""
    cuda = torch.cuda.is_available()
    setting, device = (ON_GPU, torch.device("cuda")) if cuda else (ON_CPU, torch.device("cpu"))
    setting = TINY if tiny else setting
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
