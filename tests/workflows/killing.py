"""Ends or starves the process that imports it at a moment that can be repeated.

Not a test: a config that is merged on top of a run's own names a function in its list `initialize`.
"""

import io
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image


def arm(moment: str, count: int, number: int = signal.SIGKILL) -> None:
    """Sends this process a signal when something happens for the `count`-th time.

    Args:
        moment: `writing` (half of a checkpoint is in its temporary file), `renaming` (a file is complete, but
            not in its place), `validating` (a picture of a validation volume is about to be saved),
            `finishing` (a result or a record is complete, but not in its place).
        count: from 1.
        number: of the signal.
    """
    calls = {
        "writing": (torch, "save"),
        "renaming": (os, "replace"),
        "finishing": (os, "replace"),
        "validating": (Image.Image, "save"),
    }
    owner, name = calls[moment]
    original = getattr(owner, name)
    seen = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        if moment != "renaming" or Path(args[0]).suffix == ".pt":
            seen.append(name)
        if len(seen) == count:
            seen.append("once")
            if moment == "writing" and number == signal.SIGKILL:
                _write_half(original, *args)
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    setattr(owner, name, counted)


def limit_files(size: int) -> None:
    """Lets every file of this process end at `size` bytes, as if the disk were full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _write_half(save: Callable[..., None], content: Any, file: Any) -> None:
    whole = io.BytesIO()
    save(content, whole)
    file.write(whole.getvalue()[: whole.tell() // 2])
    file.flush()
