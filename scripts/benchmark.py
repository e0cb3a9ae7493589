"""Measures what this project promises on this machine: `make bench`.

    python -m scripts.benchmark [--only quantizer presets training volume] [--output outputs/benchmark]

Prints tables and writes `benchmark.json`. The two sides of a comparison alternate in one run; figures are
medians. On a GPU the training section runs the default preset on 128^3 patches, on a CPU `lite` on 64^3.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.networks.layers.vector_quantizer import EMAQuantizer

from bundle.data.phantom import write_phantom
from bundle.handlers.checkpoint_file import network_settings, write_checkpoint
from bundle.inferers.halo import HaloInferer
from bundle.launch import write_atomically
from bundle.networks.quantizer import EMACodebook, nearest_codes
from bundle.networks.vqgan import PRESETS, VQGAN, build_vqgan, to_device
from scripts.training_benchmark import measure_training

BUNDLE_ROOT = Path(__file__).resolve().parent.parent
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VOLUME = (512, 512, 604)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of this module."""
    sections: dict[str, Callable[[Path], Any]] = {
        "quantizer": measure_quantizer,
        "presets": measure_presets,
        "training": measure_training,
        "volume": measure_volume_memory,
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=sections, default=list(sections))
    parser.add_argument("--output", type=Path, default=BUNDLE_ROOT / "outputs" / "benchmark")
    given = parser.parse_args(arguments)
    given.output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"machine": describe_machine()}
    print(json.dumps(results["machine"]))
    for name in given.only:
        results[name] = sections[name](given.output)
        print(f"\n{name}\n{as_table(results[name])}", flush=True)
        write_atomically(given.output / "benchmark.json", json.dumps(results, indent=2) + "\n")
    print(f"\nwrote {given.output / 'benchmark.json'}")


def describe_machine() -> dict[str, Any]:
    """What the figures depend on."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


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


def measure_volume_memory(output: Path) -> list[dict[str, Any]]:
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


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    """Seconds and extra peak memory in MiB of one call."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        return time.perf_counter() - start, (torch.cuda.max_memory_allocated() - before) / 2**20
    before_mib, done, peaks = resident_mib("self"), threading.Event(), [0.0]
    watcher = threading.Thread(target=lambda: peaks.append(watch_resident("self", lambda: not done.is_set())))
    watcher.start()
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    return seconds, max(0.0, max(peaks) - before_mib)


def watch_resident(pid: int | str, goes_on: Callable[[], bool]) -> float:
    """Peak resident memory of a process in MiB while `goes_on`, sampled every 5 ms."""
    peak = 0.0
    while goes_on():
        peak = max(peak, resident_mib(pid))
        time.sleep(0.005)
    return peak


def resident_mib(pid: int | str) -> float:
    """Resident memory of a process in MiB; 0 once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0.0
    lines = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(lines[0].split()[1]) / 1024 if lines else 0.0


def as_table(rows: list[dict[str, Any]]) -> str:
    """Rows with the same keys as a Markdown table."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    for row in rows:
        cells = [
            f"{value:,.3g}"
            if isinstance(value, float)
            else f"{value:,}"
            if isinstance(value, int)
            else value or ""
            for value in row.values()
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
