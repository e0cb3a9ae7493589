"""The viewer of an evaluation's folder as a user starts it."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bundle.reports.tables import FALSE_EMBOLI, FALSE_EMBOLI_COLUMNS, TableError, write_table
from bundle.viewing import page
from bundle.viewing.page import PageError
from scripts.view import ViewError, contents_of, main, read_evaluated

ROOT = Path(__file__).resolve().parents[2]


def save(path, voxels):
    nib.save(nib.Nifti1Image(voxels, np.diag([0.7, 0.7, 2, 1])), path)
    return str(path)


@pytest.fixture
def folder(tmp_path):
    """A folder of configs/evaluate.yaml: volumes with a page, without, without reconstruction."""
    voxels = np.random.default_rng(0).integers(-1000, 1000, (24, 20, 16), np.int16)
    files = {
        "original": save(tmp_path / "ct.nii.gz", voxels),
        "reconstruction": save(tmp_path / "r.nii.gz", voxels // 2),
    }
    out = tmp_path / "out"
    (out / "viewer").mkdir(parents=True)
    (out / "viewer" / "one.html").write_text("the page of one", encoding="utf-8")
    volumes = {"one": {"stem": "one"} | files, "<two>": {"stem": "two"} | files}
    volumes["three"] = {"stem": "three"} | files | {"reconstruction": ""}
    (out / "volumes.json").write_text(json.dumps(volumes), encoding="utf-8")
    about = {"hu_window": [-1000.0, 1000.0], "method": "model"}
    (out / "summary.json").write_text(json.dumps({"about": about}), encoding="utf-8")
    spots = [("<two>", "p", method, 5, 6, 7, 0, 0, 0, 0.6) for method in ("model", "hevc")]
    write_table(out / FALSE_EMBOLI, FALSE_EMBOLI_COLUMNS, spots)
    return out


def described(text):
    (content,) = re.findall(r'id="content">([^<]+)<', text)
    return json.loads(content)


def test_every_volume_is_on_the_list_with_what_was_kept(folder):
    contents, start = contents_of(read_evaluated(folder), "key")
    index = contents[start].make().decode()
    assert [word in index for word in ("one", "&lt;two&gt;", "three")] == [True] * 3
    assert index.count("no reconstruction was kept") == 2
    assert sorted(contents) == sorted(
        ["/key/"]
        + [f"/key/{n}/{rest}" for n in (0, 1) for rest in ("", "every-voxel/")]
        + [f"/key/{n}/every-voxel/{name}.nii" for n in (0, 1) for name in ("original", "reconstruction")]
    )
    assert set(re.findall(r'href="(/[^"]+)"', index)) == {
        k for k in contents if re.fullmatch(r"/key/\d/.*/?", k)
    } - {k for k in contents if k.endswith(".nii")}


def test_a_page_is_the_one_of_the_evaluation_or_made_from_its_files(folder):
    contents, _ = contents_of(read_evaluated(folder), "key")
    assert contents["/key/0/"].make() == b"the page of one"
    views = described(contents["/key/1/"].make().decode())["views"]
    assert [view["name"] for view in views][0] == "whole volume"
    assert views[0]["places"][0] == {
        "name": "invented embolus 1: 60% of a clot's contrast",
        "voxel": [5, 6, 7],
    }
    (every,) = described(contents["/key/1/every-voxel/"].make().decode())["views"]
    assert every["original"] == {"url": "/key/1/every-voxel/original.nii"}
    image = nib.Nifti1Image.from_bytes(contents[every["reconstruction"]["url"]].make())
    expected = nib.load(folder.parent / "r.nii.gz")
    assert np.array_equal(np.asanyarray(image.dataobj), np.asanyarray(expected.dataobj))


def test_one_file_is_written_and_a_larger_one_than_40_mib_refused(folder, monkeypatch, capsys):
    path = folder.parent / "page.html"
    main([str(folder), "--file", str(path), "--volume", "<two>", "--side", "16"])
    views = described(path.read_text(encoding="utf-8"))["views"]
    assert "full resolution" in views[1]["name"] and "page.html" in capsys.readouterr().out
    monkeypatch.setattr(page, "MAX_PAGE_BYTES", 2**20)
    with pytest.raises(PageError, match="larger.html: a page must not be larger than"):
        main([str(folder), "--file", str(path.with_name("larger.html")), "--volume", "<two>"])
    assert not path.with_name("larger.html").exists()


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        ([], "`--volume` must be one of one, <two>, three, got None; name one"),
        (["--volume", "four"], "must be one of one, <two>, three, got four"),
        (["--volume", "three"], "three: no reconstruction was kept; evaluate with --write_volumes true"),
    ],
)
def test_a_volume_that_cannot_be_shown_is_refused(folder, volume, message):
    with pytest.raises(ViewError, match=re.escape(message)):
        main([str(folder), "--file", str(folder / "page.html"), *volume])


@pytest.mark.parametrize("stem", ["../two", "", "a/b", "/etc/passwd", 5, None])
def test_a_list_that_was_tampered_with_is_refused(folder, stem):
    volumes = json.loads((folder / "volumes.json").read_text(encoding="utf-8"))
    volumes["one"]["stem"] = stem
    (folder / "volumes.json").write_text(json.dumps(volumes), encoding="utf-8")
    with pytest.raises(TableError, match="is no output folder of configs/evaluate.yaml"):
        read_evaluated(folder)


def test_a_folder_without_an_evaluation_or_without_a_volume_is_refused(folder, tmp_path):
    (folder / "volumes.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ViewError, match="no volume was evaluated"):
        read_evaluated(folder)
    with pytest.raises(TableError, match="is no output folder"):
        read_evaluated(tmp_path)


@pytest.mark.parametrize("name", ["summary.json", "volumes.json"])
def test_a_pipe_in_place_of_a_list_is_refused_and_not_waited_for(folder, name, time_limit):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(TableError, match="it is a pipe"):
        read_evaluated(folder)


def test_invented_emboli_of_a_volume_whose_name_looks_like_a_formula_are_shown(folder):
    volumes = json.loads((folder / "volumes.json").read_text(encoding="utf-8"))
    (folder / "volumes.json").write_text(json.dumps({"=p1/ct": volumes["one"]}), encoding="utf-8")
    write_table(
        folder / FALSE_EMBOLI, FALSE_EMBOLI_COLUMNS, [("=p1/ct", "p", "model", 5, 6, 7, 0, 0, 0, 0.6)]
    )
    (shown,) = read_evaluated(folder).volumes
    assert [place.voxel for place in shown.places] == [(5, 6, 7)]


def test_the_server_tells_its_address_and_ends_with_ctrl_c(folder):
    command = [sys.executable, "-m", "scripts.view", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    # what a shell starts in the background ignores Ctrl-C, and its children with it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with contextlib.ExitStack() as ended:
        ended.enter_context(process)
        ended.callback(process.kill)
        said = process.stdout.readline().decode()
        port, start = re.search(r"http://127\.0\.0\.1:(\d+)(/[\w-]{20,}/) in a browser", said).groups()
        for address, status in ((start, 200), ("/", 404)):
            connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=20)
            connection.request("GET", address)
            assert connection.getresponse().status == status
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0 and process.stderr.read() == b""
