"""Measures patches from disk: the store against MONAI's own loading, first patch, size, a reader's memory.

    python -m scripts.developer.benchmarks.data VOLUME.nii.gz

measures with that volume. The section `data` of `scripts.developer.benchmark` measures with a phantom of
512 x 512 x 604 voxels, which packs better than a real scan.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, RandSpatialCropSamplesd
from torch.utils.data import DataLoader, Dataset

from bundle.data.patches.dataset import PatchDataset, ResumableSampler
from bundle.data.volumes.phantom import write_phantom
from bundle.run.console import tell

PATCH = 128
BATCH = 4
BATCHES = 30
PATIENTS = (1, 1000)


def measure_data(output: Path) -> list[dict[str, Any]]:
    """Measures one volume of 512 x 512 x 604 voxels."""
    volume = output / "phantom_604.nii.gz"
    if not volume.exists():
        write_phantom(volume, (512, 512, 604), np.diag([0.7, 0.7, 0.55, 1]), 0)
    return measure_with(volume)


def measure_with(volume: Path) -> list[dict[str, Any]]:
    """Measures one volume."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        dataset = _dataset(volume, Path(folder))
        dataset[0]
        first_s = time.perf_counter() - start
        (stored,) = dataset.volumes
        share = stored.path.stat().st_size / (2 * math.prod(stored.shape))
        stock, ours = [], []
        for _ in range(3):  # in turns
            stock.append(_stock_rate(volume))
            ours.append(_rate(dataset))
        fast, slow = statistics.median(ours), statistics.median(stock)
        rows = {
            "first patch of the .nii.gz, packing included, s": first_s,
            "size against raw int16": share,
            f"{PATCH}^3 patches per second, one process that reads, warm": fast,
            f"{PATCH}^3 patches per second, LoadImaged and RandSpatialCropSamplesd": slow,
            "ratio": fast / slow,
        }
        for count in PATIENTS:
            rows[f"memory of its own that a reader adds, {count} patients, MiB"] = _reader_mib(dataset, count)
    return [{"what": name, "value": float(value)} for name, value in rows.items()]


def _dataset(volume: Path, cache: Path, count: int = 1) -> PatchDataset:
    return PatchDataset([{"image": str(volume)}] * count, PATCH, cache, seed=0)


def _rate(dataset: PatchDataset) -> float:
    """Measures patches per second of one reading process; the first batches are left out."""
    loader = iter(DataLoader(dataset, batch_sampler=ResumableSampler(BATCH), num_workers=1))
    for _ in range(3):
        next(loader)
    start = time.perf_counter()
    for _ in range(BATCHES):
        next(loader)
    return BATCHES * BATCH / (time.perf_counter() - start)


def _stock_rate(volume: Path) -> float:
    """Measures what MONAI's tutorials do: read the volume, cut four patches."""
    load = Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            RandSpatialCropSamplesd("image", [PATCH] * 3, num_samples=4, random_size=False),
        ]
    )
    start = time.perf_counter()
    n_patches = len(load({"image": str(volume)}))
    return n_patches / (time.perf_counter() - start)


class _Memory(Dataset):
    """Reads patches and tells the private memory of its process before and after."""

    def __init__(self, dataset: PatchDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, number: int) -> float:
        before = _private_mib()
        for sample in range(number, number + 32):
            self.dataset[sample]
        return _private_mib() - before


def _reader_mib(dataset: PatchDataset, count: int) -> float:
    many = _dataset(Path(dataset.data[0]["image"]), dataset.store.cache_dir, count)
    many.prepare()
    numbers: Iterator[int] = itertools.count(0, 32)
    loader = DataLoader(_Memory(many), sampler=list(itertools.islice(numbers, 2)), num_workers=1)
    return sum(float(value) for value in loader)


def _private_mib() -> float:
    text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    private = [line.split()[1] for line in text.splitlines() if line.startswith("Private_")]
    return sum(map(int, private)) / 1024


if __name__ == "__main__":
    tell(json.dumps(measure_with(Path(sys.argv[1])), indent=2))
