"""The page as text: what it holds, and what it may not."""

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from bundle.reports.html import PAGE
from bundle.viewing import page
from bundle.viewing.page import PageError, page_text, render_index, render_page, write_page
from bundle.viewing.views import Place, View

NIIVUE = Path(page.__file__).parent / "niivue"


def views(shape=(8, 7, 6), name="whole volume"):
    voxels = np.random.default_rng(0).integers(-1000, 1000, shape, np.int16)
    return [View(name, voxels, voxels // 2, np.eye(4), (Place("</script><b>", (1, 2, 3)),))]


def test_a_page_holds_its_volumes_and_loads_nothing():
    text = page_text("ct", views(), -1000, 1000)
    (held,) = re.findall(r'id="original-0">([^<]+)<', text)
    file = gzip.decompress(base64.b64decode(held))
    assert np.array_equal(np.frombuffer(file[352:], "<i2"), views()[0].original.ravel(order="F"))
    assert re.findall(r"<(?:script|img|link|iframe)[^>]*(?:src|href)=\"(?!data:,)", text) == []


SERVED = {"name": "all", "places": [], "original": {"url": "/a"}, "reconstruction": {"url": "/b"}}


@pytest.mark.parametrize(
    ("text", "reached"),
    [
        (page_text("ct", views(), -1000, 1000), {"'none'"}),
        (render_page("ct", [SERVED], -1000, 1000), {"'self'"}),
        (render_index([("ct", ["/key/0/", None])]), {"'none'"}),
        (PAGE.substitute(title="report", body=""), {"'none'"}),
    ],
    ids=["file", "served", "index", "report"],
)
def test_no_page_may_reach_a_network(text, reached):
    (found,) = re.finditer(r'<meta http-equiv="Content-Security-Policy"\s+content="([^"]+)"', text)
    assert not re.search(
        "<(?:style|link|script|img|body)", text[: found.start()]
    )  # it rules what follows only
    policy = {words[0]: set(words[1:]) for words in map(str.split, found[1].split(";"))}
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == {"'none'"}
    assert policy.get("connect-src", policy["default-src"]) == reached
    assert not policy.get("script-src", set()) & {"'unsafe-inline'", "'unsafe-eval'"}
    inside = {"'none'", "'unsafe-inline'", "'wasm-unsafe-eval'", "data:", "blob:"}
    others = set().union(*(sources for name, sources in policy.items() if name != "connect-src"))
    assert {one for one in others if not one.startswith("'sha256-")} <= inside


def test_only_scripts_of_ours_may_run():
    text = page_text("ct", views(), -1000, 1000)
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    hashes = {base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in scripts}
    assert len(scripts) == 2 and hashes == set(re.findall(r"'sha256-([^']+)'", text))


def test_names_out_of_files_stay_text():
    text = page_text("<script>alert(1)</script>", views(name="</script><script>"), -1000, 1000, "<i>x")
    assert "<script>alert" not in text and "<i>x" not in text and "</script><b>" not in text
    (content,) = re.findall(r'id="content">([^<]+)<', text)
    assert json.loads(content)["views"][0]["name"] == "</script><script>"
    assert "<b>" not in render_index([("<b>", ["/key/0/", None])])


def test_the_same_volume_gives_the_same_page():
    assert page_text("ct", views(), -1000, 1000) == page_text("ct", views(), -1000, 1000)


def test_a_page_above_40_mib_is_refused_by_name(tmp_path, monkeypatch):
    assert page.MAX_PAGE_BYTES == 40 * 2**20
    monkeypatch.setattr(page, "MAX_PAGE_BYTES", 2**20)
    with pytest.raises(
        PageError, match=r"ct.html: a page must not be larger than 1 MiB, got \d.* MiB; choose"
    ):
        write_page(tmp_path / "ct.html", "ct", views(), -1000, 1000)
    assert not list(tmp_path.iterdir())


def test_niivue_is_the_file_that_its_licences_name():
    told = (NIIVUE / "LICENSES.txt").read_text(encoding="utf-8")
    assert hashlib.sha256((NIIVUE / "niivue.umd.js").read_bytes()).hexdigest() in told
    assert "@niivue/niivue 0.69.0 (BSD-2-Clause)" in told and told.count("Copyright") >= 14
