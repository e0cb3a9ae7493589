"""Meets and fails ten times, then ends well; every time leaves a file: `torchrun restarting.py FOLDER`."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bundle.distributed.collectives import gather  # noqa: E402
from bundle.distributed.ranks import is_first, join, leave  # noqa: E402

if __name__ == "__main__":
    join("cpu")
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    assert gather(attempt) == [attempt, attempt]
    if is_first():
        (Path(sys.argv[1]) / f"met_{attempt:02d}").touch()
    if attempt < 10 and (is_first() or attempt % 2):
        os._exit(1)
    gather(attempt)  # on even attempts rank 1 is left waiting here
    leave()
