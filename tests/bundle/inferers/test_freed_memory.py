"""Memory that is freed while a network runs is used again, and given back afterwards."""

import os
import subprocess
import sys
import threading

import pytest
import torch

from bundle.inferers import freed_memory
from bundle.inferers.freed_memory import KEPT, USUAL, VARIABLES, freed_memory_kept

CPU = torch.device("cpu")
MEASURED = """
import resource, torch
from bundle.inferers.freed_memory import freed_memory_kept

n_bytes, page = 2**26, resource.getpagesize()

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * page

with freed_memory_kept(torch.device("cpu")):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(n_bytes // 4)
    n_filled = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    kept = resident()
print(n_filled * page / n_bytes, (kept - resident()) / n_bytes)
"""


class Libc:
    """Notes what it is told."""

    def __init__(self):
        self.thresholds, self.trims = {}, 0

    def mallopt(self, name, n_bytes):
        self.thresholds[name] = n_bytes

    def malloc_trim(self, _):
        self.trims += 1


@pytest.fixture
def libc(monkeypatch):
    libc = Libc()
    monkeypatch.setattr(freed_memory, "_glibc", lambda: libc)
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    return libc


@pytest.mark.skipif(freed_memory._glibc() is None, reason="only glibc gives memory back at once")
def test_blocks_are_filled_once_and_given_back_at_the_end():
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", MEASURED], capture_output=True, text=True, env=environment, check=True
    )
    n_filled, n_given_back = map(float, done.stdout.split())
    assert n_filled < 10  # of 20
    assert n_given_back > 0.5


def test_contexts_may_be_nested(libc):
    with freed_memory_kept(CPU):
        with freed_memory_kept(CPU):
            assert libc.thresholds == KEPT
        assert libc.thresholds == KEPT
    assert libc.thresholds == USUAL and libc.trims == 4


def test_contexts_may_overlap_in_threads(libc):
    begun, may_end = threading.Event(), threading.Event()

    def run():
        with freed_memory_kept(CPU):
            begun.set()
            may_end.wait()

    thread = threading.Thread(target=run, daemon=True)
    with freed_memory_kept(CPU):
        thread.start()
        begun.wait()
    assert libc.thresholds == KEPT
    may_end.set()
    thread.join()
    assert libc.thresholds == USUAL


def test_an_error_passes_and_ends_it(libc):
    with pytest.raises(ValueError, match="too large"), freed_memory_kept(CPU):
        raise ValueError("too large")
    assert libc.thresholds == USUAL


def test_a_forked_process_keeps_nothing(libc):
    with freed_memory_kept(CPU):
        freed_memory._end_in_child()
        assert libc.thresholds == USUAL and not freed_memory._running


@pytest.mark.parametrize("variable", VARIABLES)
def test_thresholds_that_a_user_has_set_stay(libc, monkeypatch, variable):
    monkeypatch.setenv(variable, "99999999999999999999")
    with freed_memory_kept(CPU):
        assert not libc.thresholds


def test_nothing_happens_for_a_gpu(libc):
    with freed_memory_kept(torch.device("cuda")):
        assert not libc.thresholds


@pytest.mark.parametrize("library", [("", ""), ("glibc", "2.4"), ("glibc", "2.34"), ("musl", "1.2.5")])
def test_nothing_happens_with_another_library_or_an_old_one(monkeypatch, library):
    monkeypatch.setattr(freed_memory.platform, "libc_ver", lambda: library)
    monkeypatch.setattr(freed_memory.ctypes, "CDLL", lambda _: pytest.fail("a library was loaded"))
    monkeypatch.setattr(freed_memory, "_glibc", freed_memory._glibc.__wrapped__)
    with freed_memory_kept(CPU):
        pass
