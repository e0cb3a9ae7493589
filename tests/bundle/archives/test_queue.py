import csv
import errno
import threading
from pathlib import Path

import pytest

from bundle.archives.board import JobError
from bundle.archives.faults import volume_fault
from bundle.archives.queue import VolumeQueue
from bundle.data.cases.find import DatasetError
from bundle.data.latents.file import LatentFileError
from bundle.data.store.file import StoreError
from bundle.data.volumes.formats import VolumeError
from bundle.distributed.processes import ProcessError
from bundle.run.atomic import UnwritableError


class Saver:
    """Knows which results are there and which cannot be saved."""

    def __init__(self, done=(), faults=()):
        self.done, self.faults = set(done), dict(faults)

    def path_of(self, source):
        return Path("/nowhere") / Path(source).name

    def is_done(self, source):
        return source in self.done

    def fault(self, source):
        return self.faults.get(source)


@pytest.fixture
def queues(boards, tmp_path):
    """Makes the queues of a job of `world_size` processes over volumes 0, 1, 2, ..."""

    def make(world_size, n_volumes, saver=None, **settings):
        cases = [{"image": str(number), "patient": ""} for number in range(n_volumes)]
        folders = {"dataset_dir": tmp_path, "output_dir": tmp_path / "out"}
        return [
            VolumeQueue(cases, board, saver or Saver(), **folders, **settings) for board in boards(world_size)
        ]

    return make


def work(queue, done):
    for number in queue:
        done.append(number)
        queue.count_written()


def test_processes_share_the_volumes_each_of_them_once(queues):
    first, *others = queues(3, 60)
    done = [[], [], []]
    threads = [
        threading.Thread(target=work, args=(queue, mine))
        for queue, mine in zip(others, done[1:], strict=True)
    ]
    for thread in threads:
        thread.start()
    work(first, done[0])
    for thread in threads:
        thread.join(30)

    figures = [queue.finish() for queue in others]
    summary = first.finish()

    assert sorted(done[0] + done[1] + done[2]) == list(range(60))
    assert [own["written"] for own in figures] == [len(mine) for mine in done[1:]]
    assert {**summary, "seconds": 0} == {
        **{"volumes": 60, "written": 60, "existing": 0, "skipped": 0, "seconds": 0}
    }
    first.exit_if_skipped()


def test_results_that_are_there_are_left_out_if_that_is_wanted(queues):
    saver = Saver(done=["0", "2"])

    (queue,) = queues(1, 4, saver, skip_existing=True)
    assert list(queue) == [1, 3]
    (queue,) = queues(1, 4, saver)
    assert list(queue) == [0, 1, 2, 3]


def test_what_is_skipped_is_named_counted_and_told_by_the_exit_code(queues, tmp_path, caplog):
    (queue,) = queues(1, 5, Saver(faults={"1": "1: is no DICOM"}), on_error="skip")
    queue.cases[2]["fault"] = "2: =cmd()|evil\n"

    for number in queue:
        if number == 3:
            queue.skip("3", _wrapped(VolumeError("3: is truncated")))
        else:
            queue.count_written()
    summary = queue.finish()

    rows = list(csv.reader((tmp_path / "out" / "skipped.csv").read_text(encoding="utf-8").splitlines()))
    expected = [["1", "is no DICOM"], ["2", r"'=cmd()|evil\n"], ["3", "is truncated"]]
    assert rows == [["volume", "reason"], *expected]
    assert (summary["written"], summary["skipped"]) == (2, 3)
    assert "3 is skipped: is truncated" in caplog.text
    with pytest.raises(SystemExit) as ended:
        queue.exit_if_skipped()
    assert ended.value.code == 3


def _wrapped(error):
    """As MONAI wraps it."""
    outer = RuntimeError("applying transform")
    outer.__cause__ = error
    return outer


def test_a_list_of_an_earlier_run_goes_when_the_next_one_begins(queues, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "skipped.csv").write_text("volume,reason\n")
    (queue,) = queues(1, 1, on_error="skip")

    work(queue, [])
    queue.finish()

    assert not (tmp_path / "out" / "skipped.csv").exists()


@pytest.mark.parametrize("kind", [VolumeError, StoreError, LatentFileError])
def test_a_volume_is_to_blame_for_errors_of_its_own(kind):
    assert volume_fault(_wrapped(kind("ct.nii.gz: is damaged"))) == "ct.nii.gz: is damaged"


@pytest.mark.parametrize(
    "error",
    [
        UnwritableError(Path("out/ct"), OSError(errno.ENOSPC, "No space left on device")),
        OSError(errno.ENOSPC, "No space left on device"),
        MemoryError(),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        ValueError("the network's output must be finite"),
        ProcessError("a process was killed"),
    ],
)
def test_no_volume_is_skipped_for_what_every_volume_would_meet(queues, error):
    (queue,) = queues(1, 1, on_error="skip")

    with pytest.raises(type(error)):
        queue.skip("0", error)
    assert queue.board.count("skipped") == 0


def test_with_stop_the_first_fault_is_the_error(queues):
    (queue,) = queues(1, 1)

    with pytest.raises(VolumeError, match="0: is truncated"):
        queue.skip("0", VolumeError("0: is truncated"))


def test_a_data_set_that_has_gone_away_ends_the_run_instead_of_skipping_all_of_it(queues, tmp_path):
    (queue,) = queues(1, 1, on_error="skip")
    queue.dataset_dir = tmp_path / "gone"

    with pytest.raises(DatasetError, match="gone: is no longer there"):
        queue.skip("0", VolumeError("0: no such file"))


def test_volumes_that_nobody_finished_are_an_error(queues):
    (queue,) = queues(1, 3)
    next(iter(queue))
    queue.count_written()

    with pytest.raises(JobError, match="not finished: 2 of 3 volumes; run it again"):
        queue.finish()


@pytest.mark.parametrize(
    ("world_size", "on_error", "counts"), [(1, "stop", [3]), (2, "stop", [3, 0]), (1, "skip", [0])]
)
def test_one_process_checks_before_anything_is_written_that_all_can_be_saved(
    queues, world_size, on_error, counts
):
    assert [len(queue.cases_to_check) for queue in queues(world_size, 3, on_error=on_error)] == counts
