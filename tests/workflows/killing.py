"""Ends or starves the process that imports it at a moment that can be repeated.

Not a test: a config that is merged on top of a run's own names a function in its list `initialize`.
"""

import io
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from bundle.archives.evaluator import ArchiveEvaluator
from bundle.distributed.launcher import launched
from bundle.inferers.halo import HaloInferer
from bundle.networks.vqgan import VQGAN

LONGEST_HOLD_S = 60


def arm(
    moment: str, count: int, number: int = signal.SIGKILL, rank: int | None = None, times: int = 1
) -> None:
    """Sends this process a signal when something happens for the `count`-th time.

    Args:
        moment: `writing` (half of a checkpoint is in its temporary file), `renaming` (a file is complete, but
            not in its place), `validating` (a picture of a validation volume is about to be saved),
            `encoding` (a validation volume is about to be), `reconstructing` (a micro-batch is about to be),
            `stepping` (weights are about to move),
            `finishing` (a result or a record is complete, but not in its place).
        count: from 1.
        number: of the signal.
        rank: the only one that is to get it; None = all.
        times: how often it is sent.
    """
    if rank not in (None, launched().rank):
        return

    def send(original: Callable[..., Any], *args: Any) -> None:
        if moment == "writing" and number == signal.SIGKILL:
            _write_half(original, *args)
        for _ in range(times):
            os.kill(os.getpid(), number)

    _before_call(moment, count, send)


def fail(moment: str, count: int, rank: int) -> None:
    """Lets one rank run out of memory when something happens for the `count`-th time; see `arm`."""

    def exhaust(*_: Any) -> None:
        raise torch.OutOfMemoryError("as if there were no memory left")

    if launched().rank == rank:
        _before_call(moment, count, exhaust)


def _before_call(moment: str, count: int, act: Callable[..., None]) -> None:
    """Calls `act` with the function of a moment and its arguments, before its `count`-th call."""
    calls = {
        "writing": (torch, "save"),
        "renaming": (os, "replace"),
        "finishing": (os, "replace"),
        "validating": (Image.Image, "save"),
        "encoding": (HaloInferer, "encode"),
        "reconstructing": (VQGAN, "reconstruct"),
        "stepping": (torch.optim.Adam, "step"),
    }
    owner, name = calls[moment]
    original = getattr(owner, name)
    seen = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        if moment != "renaming" or Path(args[0]).suffix == ".pt":
            seen.append(name)
        if len(seen) == count:
            seen.append("once")
            act(original, *args)
        return original(*args, **kwargs)

    setattr(owner, name, counted)


def share_work(folder: str, ranks: int = 2) -> None:
    """Holds each rank at its first volume until all have one, or one rank could do all of them."""
    original, mark = ArchiveEvaluator._iteration, Path(folder) / f"rank_{launched().rank}"

    def held(*args: Any, **kwargs: Any) -> Any:
        mark.touch()
        end = time.monotonic() + LONGEST_HOLD_S
        while len(list(mark.parent.glob("rank_*"))) < ranks and time.monotonic() < end:
            time.sleep(0.01)
        return original(*args, **kwargs)

    ArchiveEvaluator._iteration = held  # type: ignore[method-assign]


def limit_files(size: int, rank: int = 0) -> None:
    """Lets every file of this process, or of one rank, end at `size` bytes, as if the disk were full."""
    if launched().rank != rank:
        return
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _write_half(save: Callable[..., None], content: Any, file: Any) -> None:
    whole = io.BytesIO()
    save(content, whole)
    file.write(whole.getvalue()[: whole.tell() // 2])
    file.flush()
