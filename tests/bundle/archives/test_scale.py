"""Ten times as many volumes take ten times as long and as much memory; in `make test-ranks`."""

import cProfile
import gc
import pstats
import time
import tracemalloc
from collections.abc import Callable

import nibabel as nib
import numpy as np
import pytest

from bundle.archives.board import Board
from bundle.archives.cases import archive_cases
from bundle.archives.queue import VolumeQueue
from bundle.data.cases.provenance import Provenance
from bundle.data.latents.file import EncodedVolume, Record, write_latent_file
from bundle.data.volumes.header_text import header_as_text
from bundle.run.rules import network_settings
from transforms.codes import SaveCodesd

pytestmark = pytest.mark.ranks
FEW, MANY = 1_000, 10_000
MOST = 11  # times as much for ten times as many volumes
MADE = Provenance("ab" * 32, network_settings("lite", "ema", 64, -1000, 1000))


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Folders with a tiny volume for each patient and its file of codes, by the number of patients."""
    folder = tmp_path_factory.mktemp("scale")
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4)), folder / "ct.nii.gz")
    eye, header = np.eye(4).tolist(), header_as_text(nib.Nifti1Header())
    record = Record("ct", (8, 8, 8), eye, eye, *header, dict(MADE.settings), MADE.model_sha256)
    codes = EncodedVolume(record, np.zeros((2, 2, 2), np.uint16), None)
    write_latent_file(folder / "ct_codes.npz", codes)
    return {count: _repeat(folder, count) for count in (FEW, MANY)}


def _repeat(folder, count):
    for name, result in (("data", "ct.nii.gz"), ("out", "ct_codes.npz")):
        content = (folder / result).read_bytes()
        for number in range(count):
            patient = folder / str(count) / name / f"p{number:06d}"
            patient.mkdir(parents=True)
            (patient / result).write_bytes(content)
    return folder / str(count)


def go_through(archive, on_error):
    """Lists the volumes, claims each and finds its result there."""
    cases = archive_cases(archive / "data", Board(), on_error)
    saver = SaveCodesd("pred", "image", archive / "out", archive / "data", lambda: MADE)
    queue = VolumeQueue(cases, Board(), saver, archive / "data", archive / "out", True, on_error)
    assert list(queue) == []
    assert queue.finish()["existing"] == len(cases)


def calls(work: Callable[[], None]) -> float:
    """Calls of functions: a measure of time that does not depend on who else uses the machine."""
    profile = cProfile.Profile()
    profile.runcall(work)
    return pstats.Stats(profile).total_calls


def peak_bytes(work: Callable[[], None]) -> float:
    gc.collect()
    gc.freeze()  # beside the many objects of this process, garbage of the work would hardly ever be collected
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    gc.unfreeze()
    return peak


def cpu_seconds(work: Callable[[], None]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_calls_and_memory_grow_with_the_number_of_volumes(archives, on_error):
    for measure in (calls, peak_bytes):
        few, many = (measure(lambda count=count: go_through(archives[count], on_error)) for count in archives)
        assert many <= MOST * few, measure.__name__
    assert many / MANY < 2_000  # bytes per volume


def test_so_does_the_time(archives):
    """What runs in C and does not show among the calls; best of three, since others use the machine."""
    few, many = (
        min(cpu_seconds(lambda count=count: go_through(archives[count], "skip")) for _ in range(3))
        for count in archives
    )

    print(f"\n{1e6 * many / MANY:.0f} us of CPU per volume: list, claim, compare")
    assert many <= MOST * few
