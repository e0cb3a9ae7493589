"""Kills a small run at random moments, resumes it, and compares its end with that of an uninterrupted run.

    python -m scripts.developer.chaos
    python -m scripts.developer.chaos --kills 5 --seed 1

Each round starts the same 60 iterations (gate, validations and checkpoint writing included). It sends SIGKILL
at a random moment; every fourth round waits for the next checkpoint write to do so. Then it resumes with
`--resume_from_checkpoint auto`, and compares all weights and optimizer moments bit by bit, and the table of
curves byte by byte. It runs on one core of the CPU, on systems whose processes can fork. The exit code is 1
if a round differs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import runpy
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# MONAI's bundle and the rest are imported once, for all runs that are forked from this process
import lpips  # noqa: F401
import monai.bundle  # noqa: F401
import monai.engines  # noqa: F401
import numpy as np
import torch
import torch.utils.tensorboard  # noqa: F401

from bundle.checkpoints.file import CheckpointError, read_checkpoint
from bundle.data.volumes.phantom import write_phantom
from bundle.run.atomic import UNFINISHED
from bundle.run.command import BUNDLE_ROOT
from bundle.run.console import CommandParser, tell

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
    """A run that failed by itself; the message ends with its output."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line per round; returns 1 if a round differs, else 0."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="rounds, each with one kill (20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # a thread pool would not survive the fork
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(2):
            path = folder / "data" / f"p{number}" / "ct.nii.gz"
            write_phantom(path, (48, 48, 40), np.diag([1.0, 1.0, 2.0, 1.0]), seed=number)
        start = time.perf_counter()
        run(folder, "whole", LIMIT_S)
        seconds = time.perf_counter() - start
        tell(
            f"uninterrupted: {seconds:.1f} s\n\nround  killed after  last.pt of  in a write  identical",
            flush=True,
        )
        n_identical = 0
        for number in range(1, options.kills + 1):
            moment_s = moments.uniform(0.05, 1.0) * seconds
            found = _kill(folder, f"round_{number}", moment_s, in_a_write=number % 4 == 0)
            run(folder, f"round_{number}", LIMIT_S)
            identical = same_run(folder / "whole", folder / f"round_{number}")
            n_identical += identical
            told = "yes" if identical else "NO"
            tell(f"{number:5}  {moment_s:10.2f} s  {found:>24}  {told:>9}", flush=True)
    tell(f"\n{n_identical} of {options.kills} identical")
    return int(n_identical < options.kills)


def _kill(folder: Path, name: str, moment_s: float, in_a_write: bool) -> str:
    """Returns the iteration of `last.pt` behind the kill, and whether an unfinished file lies beside it."""
    if run(folder, name, moment_s, in_a_write):
        return "ended before"
    try:
        iteration = read_checkpoint(folder / name / "checkpoints" / "last.pt")["trainer"]["iteration"]
    except CheckpointError:
        iteration = "none"
    return f"{iteration:>10}  {'yes' if _unfinished(folder / name) else 'no':>10}"


def _unfinished(output_dir: Path) -> list[Path]:
    return list((output_dir / "checkpoints").glob(f"{UNFINISHED}*"))


def run(folder: Path, name: str, limit_s: float, in_a_write: bool = False) -> bool:
    """Starts or resumes the run of that name.

    Returns:
        False if it was killed after `limit_s`; `in_a_write` waits for the next checkpoint write to do so.

    Raises:
        ChaosError: if it failed by itself.
    """
    process = multiprocessing.get_context("fork").Process(target=_train, args=(folder, name))
    process.start()
    process.join(limit_s)
    while in_a_write and process.exitcode is None and not _unfinished(folder / name):
        time.sleep(0.001)
    if process.exitcode is None:
        process.kill()
        process.join()
        return False
    if process.exitcode != 0:
        told = (folder / f"{name}.txt").read_text(encoding="utf-8", errors="replace")
        raise ChaosError(f"{name}: ended with exit code {process.exitcode}; {told[-2000:]}")
    return True


def _train(folder: Path, name: str) -> None:
    """Does what `python -m monai.bundle run` does, in this process; its output goes to a file."""
    output = os.open(folder / f"{name}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(BUNDLE_ROOT)
    sys.argv = ["-m", "run", "--config_file", str(CONFIGS)]
    settings = SETTINGS | {"dataset_dir": folder / "data", "output_dir": folder / name}
    for setting, value in settings.items():
        sys.argv += [f"--{setting}", str(value)]
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)


def same_run(whole: Path, other: Path) -> bool:
    """Tells whether two output folders hold the same weights, optimizer moments and curves, bit by bit."""
    contents = [read_checkpoint(folder / "checkpoints" / "last.pt") for folder in (whole, other)]
    tables = [(folder / "metrics.csv").read_bytes() for folder in (whole, other)]
    return tables[0] == tables[1] and all(same(*(content[part] for content in contents)) for part in COMPARED)


def same(one: Any, other: Any) -> bool:
    """Compares nested dictionaries and lists of tensors and plain values."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


if __name__ == "__main__":
    sys.exit(main())
