"""Measures seconds and peak memory of a call or a process, for the benchmarks."""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
_ends: list[float] = []  # when no further row shall begin


def limit_time(minutes: float) -> None:
    """Lets no further row of a table begin later than `minutes` from now."""
    _ends[:] = [time.monotonic() + 60 * minutes]


def has_time() -> bool:
    """Tells whether another row may begin."""
    return not _ends or time.monotonic() < _ends[0]


def describe_machine() -> dict[str, Any]:
    """Describes what the figures depend on."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    """Measures seconds and extra peak memory in MiB of one call.

    With one CPU thread, seconds are CPU time of that thread, so other programs do not count.
    """
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
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    run()
    seconds = clock() - start
    done.set()
    watcher.join()
    return seconds, max(0.0, max(peaks) - before_mib)


def watch_resident(pid: int | str, goes_on: Callable[[], bool]) -> float:
    """Measures the peak resident memory of a process in MiB while `goes_on`, every 5 ms."""
    peak = 0.0
    while goes_on():
        peak = max(peak, resident_mib(pid))
        time.sleep(0.005)
    return peak


def resident_mib(pid: int | str) -> float:
    """Returns the resident memory of a process in MiB; 0 once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0.0
    lines = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(lines[0].split()[1]) / 1024 if lines else 0.0
