"""Compares the estimate of training memory with the peak that training really reaches.

    python -m scripts.developer.memory_benchmark lite 48 adversarial

measures one setting and prints one line of JSON; the section `memory` of `scripts.developer.benchmark`
measures all, each in a process of its own, since memory that a process has freed would hide the next peak.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from bundle.engines.memory import MIB, estimate_training_memory
from bundle.engines.optimizers import build_optimizer
from bundle.engines.trainer import AdversarialTrainer
from bundle.handlers.gate import IterationGate
from bundle.handlers.updates import DiscriminatorUpdate, GeneratorUpdate
from bundle.losses.objective import GeneratorObjective
from bundle.losses.perceptual import SlicePerceptualLoss
from bundle.networks.discriminators import build_discriminators
from bundle.networks.vqgan import build_vqgan
from scripts.developer.measuring import DEVICE, timed

BUNDLE_ROOT = Path(__file__).resolve().parents[2]
ITERATIONS = 3
BATCH = 2
PHASES = ("base", "adversarial")
Weights = tuple[float, float, float, float]  # LPIPS, slice and volume discriminator, feature matching
L1_ONLY: Weights = (0.0, 0.0, 0.0, 0.0)
ADVERSARIAL: Weights = (0.1, 1.0, 0.5, 4.0)
# preset and patch side
ON_CPU = (("lite", 48), ("lite", 80))
ON_GPU = (("lite", 64), ("lite", 128), ("default", 64), ("default", 128))


def measure_memory(output: Path) -> list[dict[str, Any]]:
    """Estimate and measured peak of each setting: L1 only, and with discriminators and LPIPS."""
    settings = ON_GPU if DEVICE.type == "cuda" else ON_CPU
    rows = []
    for (preset, side), phase in itertools.product(settings, PHASES):
        command = [sys.executable, "-m", "scripts.developer.memory_benchmark", preset, str(side), phase]
        done = subprocess.run(command, cwd=BUNDLE_ROOT, check=True, stdout=subprocess.PIPE, encoding="utf-8")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    return rows


def measure_one(preset: str, side: int, phase: str) -> dict[str, Any]:
    """One setting in this process, which has not trained before."""
    weights = L1_ONLY if phase == "base" else ADVERSARIAL
    half = DEVICE.type == "cuda"
    _train("lite", 24, L1_ONLY, half)  # libraries take their own memory the first time they are used
    network, objective = _networks(preset, weights)
    rows = estimate_training_memory(network, objective, (side,) * 3, BATCH, BATCH, half)
    del network, objective
    _, measured = timed(lambda: _train(preset, side, weights, half))
    estimated = sum(row.size for row in rows) / MIB
    return {
        "preset": preset,
        "patch": f"{side}^3",
        "batch": BATCH,
        "phase": phase,
        "estimated MiB": estimated,
        "measured MiB": measured,
        "estimated / measured": estimated / measured,
    }


def _networks(preset: str, weights: Weights) -> tuple[Any, GeneratorObjective]:
    network = build_vqgan(preset).to(DEVICE)
    discriminators = build_discriminators(weights[1], weights[2], device=DEVICE)
    perceptual = SlicePerceptualLoss("vgg", "random").to(DEVICE) if weights[0] > 0 else None
    return network, GeneratorObjective(1.0, 0.25, *weights, discriminators, perceptual)


def _train(preset: str, side: int, weights: Weights, half: bool) -> None:
    network, objective = _networks(preset, weights)
    image = torch.rand(BATCH, 1, side, side, side).to(DEVICE) * 2 - 1
    gate = IterationGate(0)
    optimizer = build_optimizer(network, 1e-4)
    assert optimizer is not None
    updates: list[Any] = [GeneratorUpdate(optimizer, objective, gate, gradient_clip=1.0)]
    discriminator_optimizer = build_optimizer(objective.discriminators, 1e-4)
    if discriminator_optimizer is not None:
        updates.append(
            DiscriminatorUpdate(
                *(discriminator_optimizer, objective.discriminators, weights[1], weights[2], gate),
                gradient_clip=1.0,
            )
        )
    batches = itertools.repeat({"image": image})
    AdversarialTrainer(
        DEVICE,
        1,
        batches,
        ITERATIONS,
        network,
        BATCH,
        amp=half,
        train_handlers=updates,
    ).run()


def main() -> None:
    """Command line of one measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("preset")
    parser.add_argument("side", type=int)
    parser.add_argument("phase", choices=PHASES)
    given = parser.parse_args()
    print(json.dumps(measure_one(given.preset, given.side, given.phase)))


if __name__ == "__main__":
    main()
