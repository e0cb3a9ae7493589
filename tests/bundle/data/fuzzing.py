"""What the fuzz tests share; `CTPA_FUZZ_EXAMPLES=5000` tries more of each kind (CONTRIBUTING.md)."""

import os
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("CTPA_FUZZ_EXAMPLES", "100"))
FUZZ = settings(
    max_examples=EXAMPLES,
    derandomize=EXAMPLES == 100,
    database=None,
    deadline=60_000,  # nothing hangs
    suppress_health_check=list(HealthCheck),
)
MAX_BYTES = 24 << 20
PLACES = st.floats(0, 1, exclude_max=True)
DAMAGE = st.lists(st.tuples(st.sampled_from("sssidtx"), PLACES, st.integers(0, 255)), min_size=1, max_size=5)
NAMES = ["image", "patient", "training", "validation", "test", "shape", "a"]
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(["images/a.nii", "../a.nii", "/gone/a.nii", "\ud800", "\udcff/a", "a\0b", "x" * 300]),
    st.sampled_from([0, -1, 1, 2**31, 2**63, 10**400, "O", "<f8", "1", ""]),
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)
    ),
    max_leaves=8,
)


class Sample(SimpleNamespace):
    """A sound file, and what it holds; hypothesis prints it without its bytes."""

    def __repr__(self) -> str:
        return str(self.path)


def damaged(content: bytes, edits: Sequence[tuple[str, float, int]], other: bytes) -> bytes:
    """Sets, inserts, drops single bytes, cuts the file, or goes on with another one."""
    raw = bytearray(content)
    for kind, where, value in edits:
        place = int(where * len(raw))
        if kind == "s" and raw:
            raw[place] = value
        elif kind == "i":
            raw.insert(place, value)
        elif kind == "d":
            del raw[place : place + 1]
        elif kind == "t" and value > 0xC0:
            del raw[place:]
        elif kind == "x":
            raw[place:] = other[int(value / 256 * len(other)) :] if value % 2 else other[place:]
    return bytes(raw)


@contextmanager
def little_memory() -> Iterator[None]:
    """What a header that lies declares is never allocated."""
    tracemalloc.start()
    try:
        yield
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MAX_BYTES
