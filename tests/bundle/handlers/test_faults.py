"""Faults in the middle of a run: it stops with one clear line, and what it wrote before is whole."""

import multiprocessing
import os
import resource
import signal
from contextlib import ExitStack

import numpy as np
import pytest
from ignite.engine import Events
from torch.utils.data import DataLoader

from bundle.checkpoints.file import read_checkpoint
from bundle.checkpoints.handler import CheckpointHandler
from bundle.data.patches.dataset import PatchDataset
from bundle.data.volumes.phantom import write_phantom
from bundle.handlers.curve_table import rows_of
from bundle.handlers.curves import ScalarLog, TensorBoardLog
from bundle.run.errors import own_message
from transforms.intensity import PrepareHUBatch, ScaleHUWindowd

INTERVAL = 2  # iterations between two points and two checkpoints


@pytest.fixture
def failed(tmp_path, tiny_vqgan, small_run):
    """Lets something happen after iteration 3 of 6; gives the message that the user sees."""

    def fail(happens, dataset=None, num_workers=0):
        def handlers(run):
            log = ScalarLog(TensorBoardLog(tmp_path), tmp_path, INTERVAL, run.optimizer, progress=False)
            return [log, CheckpointHandler(run.state, tmp_path, INTERVAL)]

        run = small_run(tiny_vqgan(), 6, batch=1, weights=(0, 0, 0), handlers=handlers)
        if dataset is not None:
            loader = DataLoader(dataset, batch_sampler=run.sampler, num_workers=num_workers)
            run.trainer.data_loader = run.trainer.state.dataloader = loader
            run.trainer.prepare_batch = PrepareHUBatch(ScaleHUWindowd("image"))
        run.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=INTERVAL + 1), happens)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        with pytest.raises((OSError, ValueError, RuntimeError)) as caught, ExitStack() as after:
            # at once: pytest's own output may go to a file
            after.callback(resource.setrlimit, resource.RLIMIT_FSIZE, limits)
            run.run()
        return own_message(caught.value)

    return fail


def assert_whole(folder):
    """The checkpoint and the curves of iteration 2 can be read, and no unfinished file is left."""
    assert read_checkpoint(folder / "checkpoints" / "last.pt")["trainer"]["iteration"] == INTERVAL
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["last.pt"]
    assert rows_of(folder / "metrics.csv")[0]["iteration"] == str(INTERVAL)


@pytest.fixture
def patches(tmp_path):
    """Patches of one volume, whose original is gone as soon as the store is made."""
    source = tmp_path / "data" / "ct.nii.gz"
    write_phantom(source, (28, 28, 24), np.eye(4), seed=1)
    dataset = PatchDataset([{"image": str(source)}], 24, tmp_path / "cache")
    dataset.prepare()
    source.unlink()
    return dataset


def test_a_file_that_vanishes_is_named(failed, patches, tmp_path):
    (volume,) = patches.volumes
    message = failed(volume.path.unlink, patches)
    assert message.startswith(f"{volume.path}: is missing") and message.endswith("prepare again")
    assert_whole(tmp_path)


def test_a_chunk_that_is_damaged_is_named_with_its_source(failed, patches, tmp_path):
    (volume,) = patches.volumes

    def damage():
        content = bytearray(volume.path.read_bytes())
        content[100] ^= 1
        volume.path.write_bytes(content)

    message = failed(damage, patches)
    assert message.startswith(f"{volume.path}: is damaged") and message.endswith("ct.nii.gz")
    assert_whole(tmp_path)


def kill_readers():
    for reader in multiprocessing.active_children():
        os.kill(reader.pid, signal.SIGKILL)
        reader.join()


def test_a_killed_reader_ends_the_run_instead_of_hanging_it(failed, patches, tmp_path):
    message = failed(kill_readers, patches, num_workers=1)
    assert message.startswith("`num_workers`: a process that reads patches was killed")
    assert_whole(tmp_path)


def fill_disk(room):
    """Lets no file grow beyond so many bytes until the run has failed."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_without_room_for_a_checkpoint_the_last_one_stays(failed, tmp_path):
    last = tmp_path / "checkpoints" / "last.pt"
    message = failed(lambda: fill_disk(last.stat().st_size // 2))
    assert message.startswith(f"{last.with_name('last_new.pt')}: cannot be written (File too large)")
    assert message.endswith("go on with --resume_from_checkpoint auto")
    assert_whole(tmp_path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's thread
def test_without_room_for_the_curves_the_checkpoint_stays(failed, tmp_path):
    message = failed(lambda: fill_disk((tmp_path / "metrics.csv").stat().st_size))
    assert message.startswith(f"{tmp_path}: curves cannot be written (File too large); make room and go on")
    assert_whole(tmp_path)
