"""Memory that is freed while a network runs is used again, and given back afterwards."""

import resource
import threading

import pytest
import torch

from bundle.inferers import freed_memory
from bundle.inferers.freed_memory import KEPT, USUAL, VARIABLES, freed_memory_kept, usual_thresholds

CPU = torch.device("cpu")
N_BYTES = 2**26


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
    for variable in VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(freed_memory.ctypes, "CDLL", lambda _: libc)
    return libc


def pages_filled():
    """Counts the pages that the system fills with zeros while large blocks are used and freed."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(N_BYTES // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(freed_memory._glibc() is None, reason="only glibc gives memory back at once")
def test_blocks_are_filled_once_and_given_back_at_the_end():
    with freed_memory_kept(CPU):
        assert pages_filled() < 10 * N_BYTES / resource.getpagesize()
        kept = resident_bytes()
    assert resident_bytes() < kept - N_BYTES / 2


def test_contexts_may_be_nested(libc):
    with freed_memory_kept(CPU):
        with freed_memory_kept(CPU):
            assert libc.thresholds == KEPT
        assert libc.thresholds == KEPT and libc.trims == 1
    assert libc.thresholds == USUAL and libc.trims == 2


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


def test_nothing_happens_for_a_gpu_or_with_another_library(libc, monkeypatch):
    with freed_memory_kept(torch.device("cuda")):
        assert not libc.thresholds
    monkeypatch.setattr(freed_memory.ctypes, "CDLL", lambda _: object())
    with freed_memory_kept(CPU):
        pass


def test_thresholds_that_a_user_has_set_come_back(libc, monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "12345")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "much")  # glibc ignores it
    with freed_memory_kept(CPU):
        assert libc.thresholds == KEPT
    assert libc.thresholds == usual_thresholds() == USUAL | {freed_memory.MMAP_THRESHOLD: 12345}
