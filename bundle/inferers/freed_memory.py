"""Keeps freed memory in the process while a network runs on a CPU, which saves up to a fifth of the time."""

import ctypes
import functools
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Of glibc's malloc.h; man mallopt.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
KEPT = {MMAP_THRESHOLD: 2**28, TRIM_THRESHOLD: 2**31 - 1}
"""Bytes. Freed blocks up to the first are kept, until more than the second is free at the end of the heap."""
USUAL = {MMAP_THRESHOLD: 2**25, TRIM_THRESHOLD: 2**26}
"""Where glibc's thresholds arrive by themselves when a program frees blocks of 32 MiB."""
OLDEST_GLIBC = (2, 35)  # older ones refuse thresholds above 32 MiB
VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")

_lock = threading.Lock()
_running: set[object] = set()


@contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[None]:
    """Lets blocks that are freed be used again at once, and gives all of them back at the end.

    glibc gives each block above 32 MiB back to the system when it is freed, and the system fills the next one
    with zeros, page by page: up to a fifth of the time of a reconstruction. Contexts may be nested, and may
    overlap in several threads; each gives free memory back at its start too, so that it counts as free.
    Nothing happens for a GPU, with another C library, with a glibc before 2.35, or where the environment sets
    one of `VARIABLES`.

    Args:
        device: where the network runs.
    """
    libc = _glibc() if device.type == "cpu" else None
    if libc is None or any(name in os.environ for name in VARIABLES):
        yield
        return
    this = object()
    libc.malloc_trim(0)
    try:
        with _lock:
            _running.add(this)
            _set_thresholds(libc, KEPT)
        yield
    finally:
        with _lock:
            if _running <= {this}:
                _set_thresholds(libc, USUAL)
            _running.discard(this)
        libc.malloc_trim(0)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    name, version = platform.libc_ver()
    if name != "glibc" or tuple(map(int, version.split("."))) < OLDEST_GLIBC:
        return None
    libc = ctypes.CDLL(None)
    libc.mallopt.argtypes, libc.malloc_trim.argtypes = [ctypes.c_int, ctypes.c_int], [ctypes.c_size_t]
    os.register_at_fork(after_in_child=_end_in_child)
    return libc


def _set_thresholds(libc: ctypes.CDLL, thresholds: dict[int, int]) -> None:
    for name, n_bytes in thresholds.items():
        libc.mallopt(name, n_bytes)


def _end_in_child() -> None:
    """Ends the parent's contexts in a process that was forked, such as one that reads patches."""
    global _lock
    _lock = threading.Lock()  # another thread may have held it
    libc = _glibc()
    if _running and libc is not None:
        _running.clear()
        _set_thresholds(libc, USUAL)
