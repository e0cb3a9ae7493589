import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.ranks
SCRIPT = Path(__file__).with_name("codebook_on_ranks.py")
ROOT = SCRIPT.parents[3]


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory):
    """What 2 and 8 gloo processes got: {world size: [of rank 0, of rank 1, ...]}."""
    folder = tmp_path_factory.mktemp("ranks")
    subprocess.run(
        [sys.executable, SCRIPT, folder, "2", "8"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        timeout=120,
    )
    return {
        size: [torch.load(folder / f"{size}_{rank}.pt", weights_only=True) for rank in range(size)]
        for size in (2, 8)
    }


@pytest.fixture(scope="module")
def alone():
    """What one process gets from the concatenated batches."""
    specification = importlib.util.spec_from_file_location("codebook_on_ranks", SCRIPT)
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    return script.train(rank=0, world_size=1)


@pytest.mark.parametrize("world_size", [2, 8])
def test_all_ranks_hold_the_same_codebook_to_the_last_bit(on_ranks, world_size):
    first, *others = on_ranks[world_size]
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=0)


@pytest.mark.parametrize("world_size", [2, 8])
def test_ranks_together_equal_one_process_on_the_concatenated_batch(on_ranks, alone, world_size):
    torch.testing.assert_close(on_ranks[world_size][0], alone, rtol=1e-4, atol=1e-4)
    assert torch.equal(on_ranks[world_size][0]["restarts"], alone["restarts"])
    assert alone["restarts"].sum() > 0


def test_the_first_codes_come_from_all_ranks(on_ranks):
    assert on_ranks[8][0]["initialized"]
    assert on_ranks[8][0]["counts"][0].sum() == 11 * 8
