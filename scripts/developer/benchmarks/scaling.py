"""Measures how time and memory grow with patients, patch size, codes and processes; draws `scaling.png`."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import tempfile
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch.distributed as dist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bundle.archives.board import Board
from bundle.archives.cases import archive_cases
from bundle.run.atomic import complete_or_absent
from bundle.run.console import tell
from scripts.developer.benchmarks.measuring import DEVICE, has_time, timed
from scripts.developer.benchmarks.peers import L1_ONLY, Setting, ours, random_image

FORK = multiprocessing.get_context("fork")
PRESET = "lite"
BASE = Setting(side=48, batch=1, num_embeddings=1024, rounds=3)
RANKS_BATCH = 4
AXES = {
    "patients": (250, 1000, 4000),
    "patch size": (32, 48, 64, 96),
    "codes": (256, 1024, 4096, 16384, 65536),
    "processes": (1, 2, 4),
}
TINY_AXES = {"patients": (5, 10), "patch size": (16, 32), "codes": (8, 16), "processes": (1, 2)}
TOLD = {
    "patients": "volumes of an archive, found and checked",
    "patch size": "voxels per side of a patch, one iteration",
    "codes": "codes K, one iteration",
    "processes": f"processes, {RANKS_BATCH} patches in all",
}


def measure_scaling(output: Path, tiny: bool = False) -> list[dict[str, Any]]:
    """Measures seconds, best of three, and peak MiB as each quantity grows alone, and draws them.

    `lite` trains on patches, with L1 only. Processes exchange gradients by gloo. Their seconds are CPU
    seconds of one process, so that a machine with fewer cores than processes gives figures too. On a CPU each
    figure comes from a process of its own, since memory that another one left would be used again; its MiB
    hold weights, moments and codebook.
    """
    measures: dict[str, Callable[[int], float]] = {
        "patients": _patients,
        "patch size": lambda side: _iteration(BASE._replace(side=side)),
        "codes": lambda count: _iteration(BASE._replace(num_embeddings=count)),
    }
    rows = []
    for name, values in (TINY_AXES if tiny else AXES).items():
        for value in values:
            if has_time():
                seconds, mib = _processes(value) if name == "processes" else _alone(measures[name], value)
                rows.append({"grows": name, "value": value, "seconds": seconds, "MiB": mib})
                tell(json.dumps(rows[-1]), flush=True)
    if rows:
        draw(rows, output / "scaling.png")
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws time above and memory below, a column for each quantity; the dashed line is proportional growth.

    Args:
        rows: as `measure_scaling` gives them.
        path: of the picture.
    """
    names = list(dict.fromkeys(row["grows"] for row in rows))
    figure = Figure(figsize=(3.2 * len(names), 5.2), layout="constrained")
    panels = figure.subplots(2, len(names), squeeze=False)
    for column, name in enumerate(names):
        found = [row for row in rows if row["grows"] == name]
        values = np.array([row["value"] for row in found], float)
        power = {"patch size": 3, "processes": -1}.get(name, 1)
        for panel, what in zip(panels[:, column], ("seconds", "MiB"), strict=True):
            measured = np.array([row[what] for row in found])
            panel.plot(values, measured, "o-", color="tab:blue")
            if what == "seconds":
                proportion = measured[-1] * (values / values[-1]) ** power
                panel.plot(values, proportion, "--", color="grey", linewidth=1)
            panel.set(xscale="log", ylabel=what)
            if what == "seconds" and (measured > 0).all():
                panel.set_yscale("log")
            else:
                panel.set_ylim(0, 1.1 * max(1.0, measured.max()))
            panel.set_xticks(values, [f"{value:g}" for value in values], minor=False)
            panel.minorticks_off()
            panel.grid(alpha=0.3)
        panels[1, column].set_xlabel(TOLD[name])
    with complete_or_absent(path) as unfinished:
        FigureCanvasAgg(figure).print_png(str(unfinished))


def _best(step: Callable[[], Any], rounds: int = BASE.rounds) -> float:
    return min(timed(step)[0] for _ in range(rounds))


def _patients(count: int) -> float:
    content = gzip.compress(nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4)).to_bytes())
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            patient = Path(folder, f"p{number:06d}")
            patient.mkdir()
            (patient / "ct.nii.gz").write_bytes(content)
        return _best(lambda: archive_cases(folder, Board()))


def _iteration(setting: Setting) -> float:
    step = ours(PRESET, setting, L1_ONLY, random_image(setting))
    step()  # Adam's moments, the codebook's start
    return _best(step)


def _with_memory(measure: Callable[[], float]) -> tuple[float, float]:
    seconds: list[float] = []
    _, mib = timed(lambda: seconds.append(measure()))
    return seconds[0], mib


def _alone(measure: Callable[[int], float], value: int) -> tuple[float, float]:
    """Measures in a fork, or in this process where a GPU is used, which cannot be forked."""
    if DEVICE.type == "cuda":
        return _with_memory(lambda: measure(value))
    results = FORK.SimpleQueue()
    fork = FORK.Process(target=lambda: results.put(_with_memory(lambda: measure(value))))
    fork.start()
    _expect_success([fork])
    return results.get()


def _processes(count: int) -> tuple[float, float]:
    """Trains in `count` forks, each with its share of the batch; returns the figures of the first."""
    results = FORK.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        forks = [
            FORK.Process(target=_train_together, args=(rank, count, f"{folder}/meet", results))
            for rank in range(count)
        ]
        for fork in forks:
            fork.start()
        _expect_success(forks)
    return results.get()


def _expect_success(forks: Sequence[BaseProcess]) -> None:
    for fork in forks:
        fork.join()
    if any(fork.exitcode for fork in forks):
        raise RuntimeError(f"one of {len(forks)} processes that were measured failed; see above")


def _train_together(rank: int, count: int, place: str, results: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=count)
    setting = BASE._replace(side=32, batch=RANKS_BATCH // count)
    figures = _with_memory(lambda: _iteration(setting))
    dist.barrier()
    if rank == 0:
        results.put(figures)
    dist.destroy_process_group()
