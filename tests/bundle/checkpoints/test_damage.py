"""What can happen to the bytes of a checkpoint, and on a full disk."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from bundle.checkpoints.file import (
    FORMAT_VERSION,
    CheckpointError,
    read_checkpoint,
    read_settings,
    write_checkpoint,
)
from tests.bundle.checkpoints.conftest import SETTINGS, saved

ROOT = Path(__file__).resolve().parents[3]


def test_a_flipped_bit_never_changes_what_is_read(checkpoint):
    content, whole = checkpoint.read_bytes(), read_checkpoint(checkpoint)
    refused, wrong = 0, []
    for place in range(0, len(content), 29):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        checkpoint.write_bytes(damaged)
        try:
            found = read_checkpoint(checkpoint)
            if saved(found) != saved(whole):
                wrong.append(place)
        except CheckpointError as error:
            refused += 1
            assert str(error).startswith(f"{checkpoint}: not a readable checkpoint")
    assert wrong == []
    assert refused > 4 * len(whole["model"]["weight"].flatten()) / 29  # at least every bit of the weights
    checkpoint.write_bytes(content)
    assert read_checkpoint(checkpoint)["format_version"] == FORMAT_VERSION


def test_a_file_that_lost_its_end_is_found(checkpoint):
    checkpoint.write_bytes(checkpoint.read_bytes()[:-64])
    with pytest.raises(CheckpointError, match=r"model\.pt: not a readable checkpoint"):
        read_checkpoint(checkpoint)


def test_a_packed_part_is_refused_before_it_is_unpacked(checkpoint):
    packed = checkpoint.with_name("packed.pt")
    with zipfile.ZipFile(checkpoint) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for part in source.infolist():
            target.writestr(part.filename, source.read(part))
    with pytest.raises(CheckpointError, match=r"packed\.pt: not a readable checkpoint"):
        read_checkpoint(packed)


@pytest.mark.parametrize("said", [{}, {"format_version": 1}, {"format_version": 3}], ids=str)
def test_the_generator_of_0_1_0_is_refused_with_what_to_do(tmp_path, said):
    path = tmp_path / "old.pt"
    path.write_bytes(saved({"model": nn.Linear(3, 4).state_dict(), "network": SETTINGS, **said}))
    for read in (read_checkpoint, read_settings):
        with pytest.raises(CheckpointError, match=r"old\.pt: holds the generator of version 0\.1\.0 "):
            read(path)


class Touch:
    """An object whose unpickling runs code."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("sealed", [True, False], ids=["with a checksum", "without"])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path, sealed):
    trap, path = tmp_path / "trap", tmp_path / "evil.pt"
    content = {"model": {}, "network": SETTINGS, "extra": Touch(trap)}
    if sealed:
        write_checkpoint(path, content)
    else:
        path.write_bytes(saved(content))
    with pytest.raises(CheckpointError, match=r"evil\.pt: not a readable checkpoint"):
        read_checkpoint(path)
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists(), "the file would have done it"


FULL_DISK = """
import resource, sys, torch
from pathlib import Path
from bundle.checkpoints.file import CheckpointWriteError, write_checkpoint
for room in (0, 5000, 11_500):
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    try:
        write_checkpoint(Path(sys.argv[1]), {"model": torch.zeros(50, 50), "network": {"preset": "lite"}})
    except CheckpointWriteError as error:
        print(error)
"""


def test_without_room_the_old_file_stays_and_the_error_says_so(checkpoint):
    before = checkpoint.read_bytes()
    command = [sys.executable, "-c", FULL_DISK, str(checkpoint)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert len(told) == 3
    assert all(line.startswith(f"{checkpoint}: cannot be written (File too large)") for line in told)
    assert all(line.endswith("go on with --resume_from_checkpoint auto") for line in told)
    assert checkpoint.read_bytes() == before
    assert list(checkpoint.parent.iterdir()) == [checkpoint]
