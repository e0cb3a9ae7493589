"""Two processes on one folder or file: real ones, forked from this one."""

import atexit
import errno
import fcntl
import multiprocessing
import os
import signal
import socket
from pathlib import Path

import pytest

from bundle.run import lock
from bundle.run.lock import FolderInUseError, lock_folder, locked, release_folder

FORK = multiprocessing.get_context("fork")
LIMIT_S = 30


class Other:
    """A process that holds a folder until it is told to end or killed."""

    def __init__(self, folder: Path) -> None:
        self.pipe, theirs = FORK.Pipe()
        self.process = FORK.Process(target=self._hold, args=(folder, theirs))
        self.process.start()
        theirs.close()
        assert self.pipe.poll(LIMIT_S) and self.pipe.recv() == "held"

    @staticmethod
    def _hold(folder: Path, pipe) -> None:
        lock_folder(folder)
        pipe.send("held")
        pipe.recv()
        release_folder(folder)

    def end(self, by: int | None = None) -> None:
        if by is None:
            self.pipe.send("end")
        else:
            os.kill(self.process.pid, by)
        self.process.join(LIMIT_S)
        assert self.process.exitcode is not None


@pytest.fixture
def other(tmp_path):
    holder = Other(tmp_path)
    yield holder
    if holder.process.exitcode is None:
        holder.end()
    release_folder(tmp_path)


def test_the_second_is_refused_in_one_line_that_names_the_first(other, tmp_path):
    with pytest.raises(FolderInUseError) as refused:
        lock_folder(tmp_path)

    told = str(refused.value)
    start = f"{tmp_path}: process {other.process.pid} on {socket.gethostname()} since "
    assert told.startswith(start) and "\n" not in told
    assert told.endswith("is writing there; wait until it ends, or give another --output_dir")


@pytest.mark.parametrize("by", [None, signal.SIGKILL], ids=["at its end", "killed"])
def test_a_lock_is_gone_with_its_process(other, tmp_path, by):
    other.end(by)

    lock_folder(tmp_path)
    lock_folder(tmp_path)  # ours: nothing to do
    release_folder(tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_parts_of_one_job_share_a_folder_and_the_same_part_twice_does_not(tmp_path):
    lock_folder(tmp_path, "shard_1_of_3")
    lock_folder(tmp_path, "shard_2_of_3")
    lock._held.pop(tmp_path.resolve() / ".lock_shard_2_of_3")  # as in another process
    try:
        child = FORK.Process(target=_claim, args=(tmp_path, "shard_1_of_3"))
        child.start()
        child.join(LIMIT_S)
    finally:
        release_folder(tmp_path, "shard_1_of_3")

    assert child.exitcode == 0
    assert [path.name for path in tmp_path.iterdir()] == [".lock_shard_2_of_3"]


def _claim(folder: Path, part: str) -> None:
    lock._held.clear()  # a fork owns nothing
    with pytest.raises(FolderInUseError, match=r"is writing shard 1 of 3 there; wait until it ends"):
        lock_folder(folder, part)


def test_children_neither_keep_a_lock_nor_lose_it(tmp_path):
    lock_folder(tmp_path)
    child = FORK.Process(target=os._exit, args=(0,))
    child.start()
    child.join(LIMIT_S)

    other = FORK.Process(target=_expect_refusal, args=(tmp_path,))
    other.start()
    other.join(LIMIT_S)
    release_folder(tmp_path)

    assert other.exitcode == 0


def test_a_process_that_ends_by_an_error_leaves_no_lock_file(tmp_path):
    child = os.fork()
    if child == 0:
        atexit._clear()  # of the tests' own
        lock_folder(tmp_path)
        atexit._run_exitfuncs()
        os._exit(0)

    assert os.waitpid(child, 0)[1] == 0
    assert list(tmp_path.iterdir()) == []


def test_what_stands_in_a_lock_file_cannot_forge_a_line(other, tmp_path):
    (tmp_path / ".lock").write_bytes(b"\x1b]0;owned\nerror: forged")

    with pytest.raises(FolderInUseError) as refused:
        lock_folder(tmp_path)

    assert "\x1b" not in str(refused.value) and "\n" not in str(refused.value)


def test_a_link_in_place_of_the_lock_file_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("data")
    (tmp_path / ".lock").symlink_to(tmp_path / "precious")

    with pytest.raises(OSError):
        lock_folder(tmp_path)

    assert (tmp_path / "precious").read_text(encoding="utf-8") == "data"


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    lock_folder(tmp_path)
    release_folder(tmp_path)

    assert f"{tmp_path}: this file system knows no locks" in caplog.text


def test_files_are_made_by_one_process_at_a_time(tmp_path):
    path, steps = tmp_path / "volume.ctpa", tmp_path / "steps"
    makers = [FORK.Process(target=_make, args=(path, steps)) for _ in range(4)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join(LIMIT_S)

    assert [maker.exitcode for maker in makers] == [0] * 4
    assert steps.read_text(encoding="utf-8") == "begin end " * 4
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["steps"]


def _expect_refusal(folder: Path) -> None:
    lock._held.clear()  # as in a process that was not forked
    try:
        lock_folder(folder)
    except FolderInUseError:
        os._exit(0)
    os._exit(1)


def _make(path: Path, steps: Path) -> None:
    with locked(path):
        for word in ("begin ", "end "):
            with steps.open("a") as file:
                file.write(word)
