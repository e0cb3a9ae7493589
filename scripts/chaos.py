"""Kills a small adversarial run at random moments and compares what becomes of it with an uninterrupted run.

    python -m scripts.chaos
    python -m scripts.chaos --kills 5 --seed 1

Each round starts the same 60 iterations (gate, validations and checkpoint writing included), sends SIGKILL at
a random moment, resumes with `--resume_from_checkpoint auto` and compares all weights and optimizer moments
bit by bit, and the table of curves byte by byte. Runs on the CPU; the exit code is 1 if any round differs.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bundle.command import BUNDLE_ROOT
from bundle.data.phantom import write_phantom
from bundle.handlers.checkpoint_file import read_checkpoint

CONFIGS = ["configs/train.yaml", "configs/train_with_discriminator.yaml", "configs/smoke.yaml"]
SETTINGS = {
    "epoch_length": 15,
    "max_epochs": 4,
    "batch_size": 1,
    "micro_batch_size": 1,
    "patch_size": [24, 24, 24],
    "num_embeddings": 64,
    "checkpoint_interval": 4,
    "log_interval": 7,
    "discriminator_iter_start": 30,
    "video_gan_weight": 0,
    "resume_from_checkpoint": "auto",
}
COMPARED = ("model", "discriminators", "optimizers", "schedules", "trainer")
LIMIT_S = 1800


class ChaosError(ValueError):
    """A run that failed by itself; the message ends with what it wrote."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line per round; returns 1 if a round differs, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="rounds, each with one kill (20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    options = parser.parse_args(arguments)
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(2):
            path = folder / "data" / f"p{number}" / "ct.nii.gz"
            write_phantom(path, (48, 48, 40), np.diag([1.0, 1.0, 2.0, 1.0]), seed=number)
        start = time.perf_counter()
        run(folder, "whole", timeout_s=LIMIT_S)
        seconds = time.perf_counter() - start
        print(
            f"uninterrupted: {seconds:.1f} s\n\nround  killed after  with last.pt at  identical", flush=True
        )
        n_identical = 0
        for number in range(1, options.kills + 1):
            moment_s = moments.uniform(0.2, 1.0) * seconds
            killed_at = _kill_and_resume(folder, f"round_{number}", moment_s)
            identical = same_run(folder / "whole", folder / f"round_{number}")
            n_identical += identical
            told = "yes" if identical else "NO"
            print(f"{number:5}  {moment_s:10.2f} s  {killed_at:>15}  {told}", flush=True)
    print(f"\n{n_identical} of {options.kills} identical")
    return int(n_identical < options.kills)


def _kill_and_resume(folder: Path, name: str, moment_s: float) -> str:
    if run(folder, name, timeout_s=moment_s):
        return "finished before"
    try:
        killed_at = str(read_checkpoint(folder / name / "checkpoints" / "last.pt")["trainer"]["iteration"])
    except ValueError:
        killed_at = "none"
    run(folder, name, timeout_s=LIMIT_S)
    return killed_at


def run(folder: Path, name: str, timeout_s: float) -> bool:
    """Starts or resumes the run of that name.

    Returns:
        False if it was killed after `timeout_s`.

    Raises:
        ChaosError: if it failed by itself.
    """
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(CONFIGS)]
    settings = SETTINGS | {"dataset_dir": folder / "data", "output_dir": folder / name}
    for setting, value in settings.items():
        command += [f"--{setting}", str(value)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    with (folder / f"{name}.txt").open("ab") as output:
        process = subprocess.Popen(
            command, cwd=BUNDLE_ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return False
    if code != 0:
        told = (folder / f"{name}.txt").read_text(encoding="utf-8", errors="replace")
        raise ChaosError(f"{name}: ended with exit code {code}; {told[-2000:]}")
    return True


def same_run(whole: Path, other: Path) -> bool:
    """Whether two output folders hold the same weights, optimizer moments and curves, bit by bit."""
    contents = [read_checkpoint(folder / "checkpoints" / "last.pt") for folder in (whole, other)]
    tables = [(folder / "metrics.csv").read_bytes() for folder in (whole, other)]
    return tables[0] == tables[1] and all(same(*(content[part] for content in contents)) for part in COMPARED)


def same(one: Any, other: Any) -> bool:
    """Equality of nested dictionaries and lists of tensors and plain values."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


if __name__ == "__main__":
    sys.exit(main())
