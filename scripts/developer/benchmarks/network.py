"""Measures speed, memory and exactness of tiled reconstruction."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose
from torch import Tensor

from bundle.checkpoints.file import network_settings, write_checkpoint
from bundle.data.volumes.phantom import make_phantom, write_phantom
from bundle.inferers.halo import HaloInferer
from bundle.networks.vqgan import PRESETS, VQGAN, build_vqgan
from bundle.run.console import tell
from scripts.developer.benchmarks.measuring import DEVICE, has_time, timed, watch_resident

BUNDLE_ROOT = Path(__file__).resolve().parents[3]
VOLUME = (512, 512, 604)


def measure_presets(output: Path) -> list[dict[str, Any]]:
    """Measures parameters, operations and voxels per second of each preset."""
    rows = []
    for preset in PRESETS:
        side = 128 if DEVICE.type == "cuda" or preset == "lite" else 64
        image = torch.randn(1, 1, side, side, side)
        network = build_vqgan(preset).to(DEVICE).eval()
        operations = count_operations(network)
        inferer = HaloInferer("auto")

        def run(image: Tensor = image, network: VQGAN = network, inferer: HaloInferer = inferer) -> None:
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
    """Measures `configs/inference.yaml` on 512 x 512 x 302 and x 604 voxels: time, peak memory."""
    checkpoint = _random_model(output, "lite")
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


def measure_stages(output: Path, tiny: bool = False) -> list[dict[str, Any]]:
    """Measures the stages of `configs/inference.yaml` on volumes of several sizes, .nii.gz to .nii.gz.

    Runs `default` on a GPU and `lite` elsewhere, with random weights. The last column is the network's time
    per voxel. A small volume that is not reported comes first: torch prepares its kernels on it.
    """
    preset = "default" if DEVICE.type == "cuda" and not tiny else "lite"
    checkpoint = _random_model(output, preset)
    small, rows = (48, 48, 40), []
    _stages(output, checkpoint, small)
    for shape in [small] if tiny else [(128, 128, 128), (256, 256, 256), VOLUME]:
        if has_time():
            rows.append({"preset": preset, **_stages(output, checkpoint, shape)})
            tell(str(rows[-1]), flush=True)
    return rows


def _stages(output: Path, checkpoint: Path, shape: tuple[int, int, int]) -> dict[str, Any]:
    name = "x".join(map(str, shape))
    volume = output / f"phantom_{name}.nii.gz"
    if not volume.exists():
        write_phantom(volume, shape, np.diag([0.7, 0.7, 0.55, 1]), 0)
    parser = ConfigParser(ConfigParser.load_config_file(BUNDLE_ROOT / "configs" / "inference.yaml"))
    places = {"dataset_dir": volume, "ckpt_path": checkpoint, "output_dir": output / "reconstruction"}
    parser.update({name: str(place) for name, place in places.items()})
    names = ("network", "inferer", "preprocessing", "postprocessing")
    network: Any
    network, tiling, before, after = (parser.get_parsed_content(name) for name in names)
    network.eval()
    torch.backends.cudnn.allow_tf32 = False  # as the config sets it
    seconds: dict[str, float] = {}

    def stage(name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        results: list[Any] = []
        seconds[name], _ = timed(lambda: results.append(call(*arguments)))
        return results[0]

    item = stage("read", before.transforms[0], {"image": str(volume)})
    item = stage("scale", Compose(before.transforms[1:]), item)
    indices = stage("encode", tiling.encode, item["image"][None].as_tensor(), network)
    decoded = stage("decode", tiling.decode, indices, network)
    x, y, z = item["image"].shape[1:]
    item["pred"] = decoded[0, :, :x, :y, :z]
    item = stage("scale back", Compose(after.transforms[:-1]), item)
    stage("write", after.transforms[-1], item)
    network_s = seconds["encode"] + seconds["decode"]
    return {
        "voxels": " x ".join(map(str, shape)),
        **seconds,
        "all": sum(seconds.values()),
        "encode and decode, us per voxel": 1e6 * network_s / (x * y * z),
    }


def _random_model(output: Path, preset: str) -> Path:
    network = build_vqgan(preset, "ema", 1024)
    with torch.no_grad():
        network.quantizer.prepare(lambda: network.encode_latent(torch.rand(1, 1, 64, 64, 64) * 2 - 1))
    checkpoint = output / f"{preset}.pt"
    settings = network_settings(preset, "ema", 1024, -1000, 1000)
    write_checkpoint(checkpoint, {"model": network.state_dict(), "network": settings})
    return checkpoint


def measure_halo(output: Path) -> list[dict[str, Any]]:
    """Measures what a smaller halo costs: tiles of 64 voxels against one pass, on a chest phantom.

    Errors are relative to the standard deviation of the reconstruction.
    """
    volume = torch.from_numpy(make_phantom((128, 48, 48), (3.0, 6.0, 6.0), 0)).float()
    image = volume.div(1000).clamp(-1, 1)[None, None].to(DEVICE)
    rows = []
    for preset in ("lite", "default"):
        torch.manual_seed(0)
        network = build_vqgan(preset, "ema", 1024).to(DEVICE)
        with torch.no_grad():
            network.train().reconstruct(image)  # starts the codebook from data
            network.eval()
            whole = HaloInferer(128)(image, network)
            for halo in sorted({0, 8, 16, network.halo - 12, network.halo}):
                error = (HaloInferer(64, halo)(image, network) - whole).abs() / whole.std()
                largest, mean = error.max().item(), error.mean().item()
                rows.append({"preset": preset, "halo": halo, "largest error": largest, "mean error": mean})
    return rows


def count_operations(network: VQGAN) -> float:
    """Counts operations (2 per multiply-add) per voxel of encoder and decoder."""
    from torch.utils.flop_counter import FlopCounterMode

    image = torch.zeros(1, 1, 16, 16, 16, device=DEVICE)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.decode_codes(network.encode_latent(image))
    return counter.get_total_flops() / image.numel()
