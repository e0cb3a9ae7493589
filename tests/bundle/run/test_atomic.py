import os
import time

import pytest

from bundle.run.atomic import LEFTOVER_S, complete_or_absent_folder


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
