"""Measures speed and memory of the quantizer, and how many of its codes stay in use."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch
from monai.networks.layers.vector_quantizer import EMAQuantizer

from bundle.networks.nearest_codes import nearest_codes
from bundle.networks.quantizer import EMACodebook
from scripts.developer.benchmarks.measuring import DEVICE, timed

LATENTS_OF_A_VOLUME = 512 * 512 * 604 // 64


def measure_quantizer(output: Path) -> list[dict[str, Any]]:
    """Measures a step at N = 32,768, K = 16,384 beside MONAI's, and the lookup of a whole volume."""
    latent = torch.randn(1, 8, 32, 32, 32, device=DEVICE)
    ours = EMACodebook(16384, 8).to(DEVICE).train()
    monai = EMAQuantizer(3, 16384, 8, decay=0.99).to(DEVICE).train()
    ours.initialize(latent)

    def our_step() -> None:
        ours(latent)
        ours.update()

    times: dict[str, list[float]] = {"ours": [], "monai": []}
    peaks = {}
    for number in range(3):
        for name, step in (("ours", our_step), ("monai", lambda: monai(latent))):
            seconds, peak = timed(step)
            times[name].append(seconds)
            if number == 0:
                peaks[name] = peak
    vectors = torch.randn(LATENTS_OF_A_VOLUME, 8, device=DEVICE)
    seconds, peak = timed(lambda: nearest_codes(vectors, ours.embedding))
    ours_s, monai_s = (statistics.median(times[name]) for name in ("ours", "monai"))
    return [
        {"what": "step, EMACodebook", "seconds": ours_s, "extra MiB": peaks["ours"]},
        {"what": "step, MONAI EMAQuantizer", "seconds": monai_s, "extra MiB": peaks["monai"]},
        {"what": "ratio of the steps", "seconds": monai_s / ours_s, "extra MiB": None},
        {"what": f"lookup of {len(vectors):,} vectors", "seconds": seconds, "extra MiB": peak},
    ]


def measure_codebook(output: Path) -> list[dict[str, Any]]:
    """Counts how many of 1024 codes are in use after 300 steps on drifting clusters, by batch size.

    64 clusters in 8 dimensions: centres of standard deviation 2, spread 0.5, drift 0.002 per step and axis.
    """
    rows = []
    for share in (0.25, 1, 4, 16):
        codebook, restarts = EMACodebook(1024, 8).to(DEVICE).train(), []
        generator = torch.Generator().manual_seed(3)
        centres = torch.randn(64, 8, generator=generator) * 2
        velocity = torch.randn(64, 8, generator=generator) * 0.002
        for _ in range(300):
            centres += velocity
            codebook(_draw(centres, int(share * 1024), generator))
            codebook.update()
            counts = codebook.counts()
            assert counts is not None
            restarts.append(counts.restarts.item())
        held_out = codebook.eval().quantize(_draw(centres, 8192, generator))
        rows.append(
            {
                "N / K": share,
                "codes used on 8,192 held-out vectors": len(held_out.unique()) / 1024,
                "restarts per step / K, last 50": statistics.mean(restarts[-50:]) / 1024,
            }
        )
    return rows


def _draw(centres: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Draws vectors of the clusters as a latent (1, 8, count, 1, 1)."""
    cluster = torch.randint(len(centres), (count,), generator=generator)
    vectors = centres[cluster] + 0.5 * torch.randn(count, centres.shape[1], generator=generator)
    return vectors.t()[None, :, :, None, None].to(DEVICE)
