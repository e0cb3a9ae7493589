"""Speed and memory of the quantizer and of tiled reconstruction."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from monai.networks.layers.vector_quantizer import EMAQuantizer

from bundle.data.phantom import write_phantom
from bundle.handlers.checkpoint_file import network_settings, write_checkpoint
from bundle.inferers.halo import HaloInferer
from bundle.networks.quantizer import EMACodebook, nearest_codes
from bundle.networks.vqgan import PRESETS, VQGAN, build_vqgan, to_device
from scripts.measuring import DEVICE, timed, watch_resident

BUNDLE_ROOT = Path(__file__).resolve().parent.parent
VOLUME = (512, 512, 604)


def measure_quantizer(output: Path) -> list[dict[str, Any]]:
    """One training step at N = 32,768, K = 16,384 beside MONAI's; the lookup of a whole volume's latents."""
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
    vectors = torch.randn(VOLUME[0] * VOLUME[1] * VOLUME[2] // 64, 8, device=DEVICE)
    seconds, peak = timed(lambda: nearest_codes(vectors, ours.embedding, ours.lookup_bytes))
    ours_s, monai_s = (statistics.median(times[name]) for name in ("ours", "monai"))
    return [
        {"what": "step, EMACodebook", "seconds": ours_s, "extra MiB": peaks["ours"]},
        {"what": "step, MONAI EMAQuantizer", "seconds": monai_s, "extra MiB": peaks["monai"]},
        {"what": "ratio of the steps", "seconds": monai_s / ours_s, "extra MiB": None},
        {"what": f"lookup of {len(vectors):,} vectors", "seconds": seconds, "extra MiB": peak},
    ]


def measure_presets(output: Path) -> list[dict[str, Any]]:
    """Parameters, operations and voxels per second of each preset when reconstructing by tiles."""
    rows = []
    image = torch.randn(1, 1, 128, 128, 128)
    for preset in PRESETS:
        network = to_device(build_vqgan(preset), DEVICE).eval()
        operations = count_operations(network)
        inferer = HaloInferer("auto")

        def run(network: torch.nn.Module = network, inferer: HaloInferer = inferer) -> None:
            with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
                inferer(image, network)

        seconds, _ = timed(run)
        rows.append(
            {
                "preset": preset,
                "parameters": sum(parameter.numel() for parameter in network.parameters()),
                "MFLOP per voxel": operations / 1e6,
                "TFLOP per 512x512x604": operations * VOLUME[0] * VOLUME[1] * VOLUME[2] / 1e12,
                "voxels per second": image.numel() / seconds,
            }
        )
    return rows


def measure_volume(output: Path) -> list[dict[str, Any]]:
    """Time and peak resident memory of `configs/inference.yaml` on 512 x 512 x 302 and x 604 voxels."""
    network = build_vqgan("lite", "ema", 1024)
    checkpoint = output / "lite.pt"
    write_checkpoint(
        checkpoint,
        {"model": network.state_dict(), "network": network_settings("lite", "ema", 1024, -1000, 1000)},
    )
    rows = []
    for slices in (302, 604):
        volume = output / f"phantom_{slices}.nii.gz"
        if not volume.exists():
            write_phantom(
                volume, (512, 512, slices), torch.diag(torch.tensor([0.7, 0.7, 0.55, 1])).numpy(), 0
            )
        command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.yaml"]
        command += ["--dataset_dir", str(volume), "--ckpt_path", str(checkpoint), "--preset", "lite"]
        command += ["--num_embeddings", "1024", "--output_dir", str(output / "reconstruction")]
        start = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=BUNDLE_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        peak = watch_resident(process.pid, lambda process=process: process.poll() is None)  # type: ignore[misc]
        if process.returncode:
            raise RuntimeError(f"`{' '.join(command)}` failed; run it by hand to see why")
        rows.append({"slices": slices, "seconds": time.perf_counter() - start, "peak resident MiB": peak})
    voxels = VOLUME[0] * VOLUME[1] * 302
    growth = (rows[1]["peak resident MiB"] - rows[0]["peak resident MiB"]) * 2**20 / voxels
    return [*rows, {"slices": "bytes per further voxel", "seconds": None, "peak resident MiB": growth}]


def count_operations(network: VQGAN) -> float:
    """Operations (2 per multiply-add) per voxel of encoder and decoder."""
    from torch.utils.flop_counter import FlopCounterMode

    image = torch.zeros(1, 1, 16, 16, 16, device=DEVICE)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.decode_codes(network.encode_latent(image))
    return counter.get_total_flops() / image.numel()
