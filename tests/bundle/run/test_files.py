"""What is no regular file is never opened: a pipe would be waited for, for ever."""

import os
import socket

import pytest

from bundle.run.files import FolderError, open_regular, walk_files

pytestmark = pytest.mark.usefixtures("time_limit")


@pytest.fixture(params=["pipe", "link to a pipe", "device", "link to a device", "socket", "folder"])
def no_file(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    kind, path = request.param.removeprefix("link to a "), tmp_path / "slice"
    if kind == "pipe":
        os.mkfifo("slice")
    elif kind == "device":
        os.symlink("/dev/zero", "slice")
    elif kind == "folder":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("slice")
    if request.param.startswith("link"):
        (tmp_path / "link").symlink_to(path)
        return tmp_path / "link"
    return path


def test_only_regular_files_are_opened(no_file):
    with pytest.raises(OSError) as raised:
        open_regular(no_file)

    assert str(no_file) in str(raised.value)


def test_a_link_to_a_file_is_opened(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")

    with open_regular(tmp_path / "link") as file:
        assert file.read() == b"content"


def test_folders_are_walked_without_hidden_files_pipes_and_circles(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("z", "a/ct", "a/.hidden", "a/b/slice"):
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "a" / "pipe")
    (tmp_path / "a" / "link").symlink_to(tmp_path / "a" / "pipe")
    (tmp_path / "a" / "nowhere").symlink_to("missing")
    (tmp_path / "a" / "b" / "circle").symlink_to(tmp_path)

    found = [str(path.relative_to(tmp_path)) for _, paths in walk_files(tmp_path) for path in paths]

    assert found == ["z", "a/ct", "a/nowhere", "a/b/slice"]


def test_more_folders_than_allowed_are_refused(tmp_path):
    for number in range(4):
        (tmp_path / str(number)).mkdir()

    assert len(list(walk_files(tmp_path, max_folders=5))) == 5
    with pytest.raises(FolderError, match=r"holds more than 4 folders; name a folder with less in it"):
        list(walk_files(tmp_path, max_folders=4))


def test_more_nested_folders_than_python_calls_are_walked(tmp_path):
    deepest = tmp_path
    for _ in range(1200):  # `mkdir(parents=True)` calls itself
        deepest = deepest / "d"
        deepest.mkdir()
    (deepest / "ct.nii.gz").touch()

    found = [path for _, paths in walk_files(tmp_path) for path in paths]

    assert found == [deepest / "ct.nii.gz"]
    (deepest / "ct.nii.gz").unlink()
    while deepest != tmp_path:  # pytest's own cleaning calls itself too
        deepest.rmdir()
        deepest = deepest.parent
