import errno
import os
import time

import pytest

from bundle.run.atomic import (
    LEFTOVER_S,
    UnwritableError,
    complete_or_absent,
    complete_or_absent_folder,
    open_without_links,
    remove_leftovers,
    write_text,
)


@pytest.fixture
def leave(tmp_path):
    """A folder of slices that a killed process left, and since when nobody has touched it."""

    def leave(name: str, age_s: float = 0):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "0001.dcm").write_text("DOE^JANE")
        os.utime(folder, (time.time() - age_s,) * 2)
        return folder

    return leave


def write(path, text="new"):
    with complete_or_absent_folder(path) as folder:
        (folder / "0001.dcm").write_text(text)


def test_what_killed_processes_left_goes_when_the_next_folder_is_written(leave, tmp_path):
    leave(".unfinished_0123abcd_p1_recon", LEFTOVER_S + 60)
    leave(".replaced_0123abcd_p2_recon")

    write(tmp_path / "p2_recon")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["p2_recon"]


def test_what_another_process_may_still_need_stays(leave, tmp_path):
    kept = [
        leave(".unfinished_0123abcd_p1_recon", LEFTOVER_S / 2),
        leave(".replaced_0123abcd_p3_recon", LEFTOVER_S + 60),  # the only result of p3
        leave(".unfinished_business", LEFTOVER_S + 60),
    ]

    write(tmp_path / "p2_recon")

    assert [(folder / "0001.dcm").exists() for folder in kept] == [True] * 3


def test_nothing_outside_is_removed_through_a_link(leave, tmp_path):
    elsewhere = leave("elsewhere")
    (tmp_path / "out").mkdir()
    link = tmp_path / "out" / ".replaced_0123abcd_p2_recon"
    link.symlink_to(elsewhere)

    write(tmp_path / "out" / "p2_recon")

    assert not link.is_symlink() and (elsewhere / "0001.dcm").exists()


def test_ages_are_measured_by_the_clock_of_the_folder(leave, tmp_path, monkeypatch):
    """The clock of another machine may be many minutes ahead."""
    live = leave(".unfinished_0123abcd_p1_recon", 2)
    dead = leave(".unfinished_0123abcd_p2_recon", LEFTOVER_S + 60)
    monkeypatch.setattr(time, "time", lambda: time.time_ns() / 1e9 + LEFTOVER_S + 100)

    remove_leftovers(tmp_path)

    assert live.exists() and not dead.exists()


def test_a_folder_that_nobody_else_writes_has_dead_leftovers_only(leave, tmp_path):
    leave(".unfinished_0123abcd_last.pt")

    remove_leftovers(tmp_path, age_s=-1)

    assert list(tmp_path.iterdir()) == []


def test_interrupted_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    write_text(path, "old")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UnwritableError) as refused:
        write_text(path, "new", "give another --csv")

    assert str(refused.value) == f"{path}: cannot be written (No space left on device); give another --csv"
    assert path.read_text(encoding="utf-8") == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]


def test_a_full_disk_is_told_by_the_name_of_the_file():
    """`/dev/full` answers every write like a full disk."""
    with pytest.raises(UnwritableError, match=r"^/nowhere/ct.nii.gz: cannot be written \(No space left"):
        _fail_as_on_a_full_disk()


def _fail_as_on_a_full_disk():
    try:
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")
    except OSError as error:
        raise UnwritableError("/nowhere/ct.nii.gz", error) from error


def test_an_error_of_reading_is_not_told_as_one_of_writing(tmp_path):
    with pytest.raises(FileNotFoundError, match="source.nii"), complete_or_absent(tmp_path / "ct.nii"):
        (tmp_path / "source.nii").read_bytes()

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [write, write_text], ids=["folder", "file"])
def test_a_place_that_cannot_be_written_is_named(tmp_path, write):
    (tmp_path / "file").touch()

    with pytest.raises(UnwritableError, match="file/sub/result: cannot be written .Not a directory"):
        write(tmp_path / "file" / "sub" / "result", "text")


def test_a_link_is_never_written_through(tmp_path):
    target = tmp_path / "precious"
    target.write_text("data")
    (tmp_path / "inference.log").symlink_to(target)

    with pytest.raises(UnwritableError, match="inference.log: cannot be written .it is a link to another"):
        open_without_links(tmp_path / "inference.log", os.O_WRONLY | os.O_TRUNC)

    assert target.read_text(encoding="utf-8") == "data"


def test_a_device_is_never_replaced_by_a_file(tmp_path):
    """As root, `--csv /dev/null` would leave the machine without `/dev/null`."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    with pytest.raises(UnwritableError, match="pipe: cannot be written .it is a folder, a device or a pipe"):
        write_text(pipe, "text")

    assert [entry.name for entry in tmp_path.iterdir()] == ["pipe"]
