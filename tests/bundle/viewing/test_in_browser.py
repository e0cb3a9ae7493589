"""The page in a headless Chromium: what a reader sees and can do. Slow: WebGL is drawn by the CPU."""

import threading

import numpy as np
import pytest
from PIL import Image

from bundle.viewing.page import as_json, render_page, write_page
from bundle.viewing.server import Content, ViewerServer
from bundle.viewing.views import Place, View, nifti_bytes

pytestmark = pytest.mark.viewer

AFFINE = np.diag([1.5, 1.5, 2.0, 1.0])
SHAPE = (48, 40, 30)
BALL, WATER = (31, 17, 15), (20, 13, 15)
"""Voxels off the cross-hair."""
GREY = {"lung": (-600, 1500), "mediastinum": (40, 400), "pe": (100, 700)}


def view():
    """Water with a ball of blood at the patient's right, that the reconstruction draws 100 HU too dark."""
    x, y, z = np.ogrid[tuple(map(slice, SHAPE))]
    original = np.zeros(SHAPE, np.int16)
    original[(x - 34) ** 2 + (y - 20) ** 2 + (z - 15) ** 2 < 64] = 150
    recon = np.where(original > 0, original - 100, original).astype(np.int16)
    recon[:4] = -3000  # below the window: a difference of 1000 HU, not of 3000
    return View("all", original, recon, AFFINE, (Place("ball", (34, 20, 15)), Place("water", (20, 10, 5))))


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "ct.html"
    write_page(path, "a patient", [view()], -1000, 1000, "a notice")
    browser.open(path.as_uri())
    browser.wait_for("/^(ready|failed)/.test(document.title)")
    return browser


def point(page, n, voxel):
    """Where an axial panel shows a voxel: the patient's right is on its left, the front is up."""
    left, top, width, height = page.evaluate(
        f"(() => {{ const r = document.getElementById('panel-{n}').getBoundingClientRect();"
        " return [r.x, r.y, r.width, r.height] })()"
    )
    scale = min(width / (SHAPE[0] * 1.5), height / (SHAPE[1] * 1.5))
    x = left + width / 2 + (SHAPE[0] / 2 - voxel[0] - 0.5) * 1.5 * scale
    y = top + height / 2 + (SHAPE[1] / 2 - voxel[1] - 0.5) * 1.5 * scale
    return round(x), round(y)


def colour(page, tmp_path, n, voxel):
    """RGB of a voxel as a reader sees it."""
    page.screenshot(tmp_path / "shot.png")
    with Image.open(tmp_path / "shot.png") as shot:
        return list(shot.convert("RGB").getpixel(point(page, n, voxel)))


def choose(page, name, value):
    page.evaluate(
        f"(() => {{ const s = document.getElementById('{name}'); s.value = '{value}';"
        " s.dispatchEvent(new Event('change')) })()"
    )


def go_to(page, place):
    choose(page, "place", place)


def crosshairs(page):
    return page.evaluate("viewer.panels.map(p => Array.from(p.frac2vox(p.scene.crosshairPos)))")


def test_a_page_opens_from_a_disk_without_a_complaint_and_asks_nobody(page):
    assert page.evaluate("document.title") == "ready: a patient"
    assert page.complaints() == []
    assert [url for url in page.requested() if not url.startswith(("file:", "data:", "blob:"))] == []
    assert "a notice" in page.evaluate("document.body.innerText")


def test_the_difference_is_computed_inside_the_window(page):
    go_to(page, 0)
    assert page.evaluate("viewer.at") == {"voxel": [34, 20, 15], "values": [150, 50, -100]}
    text = page.evaluate("document.body.innerText")
    assert "\N{MINUS SIGN}100 HU" in text and "150 HU" in text
    assert page.evaluate("viewer.voxels[2][0]") == -1000


@pytest.mark.parametrize("preset", list(GREY))
def test_a_window_shows_the_grey_that_it_should_and_leaves_the_difference(page, tmp_path, preset):
    go_to(page, 0)
    page.evaluate(f"document.getElementById('preset-{preset}').click()")
    level, width = GREY[preset]
    for n, hu in ((0, 150), (1, 50)):
        expected = np.clip((hu - level + width / 2) / width, 0, 1) * 255
        assert colour(page, tmp_path, n, BALL) == pytest.approx([expected] * 3, abs=6)
    assert page.evaluate("['level', 'width'].map(n => Number(document.getElementById(n).value))") == [
        level,
        width,
    ]
    blue = colour(page, tmp_path, 2, BALL)
    assert blue == pytest.approx([40, 125, 235], abs=12)  # half of the scale of 200 HU
    assert max(colour(page, tmp_path, 2, WATER)) < 30


def test_one_click_moves_the_cross_hair_of_all_three_panels(page):
    go_to(page, 1)
    assert crosshairs(page) == [[20, 10, 5]] * 3
    for n, voxel in ((0, [30, 25]), (2, [12, 30])):
        page.click(*point(page, n, voxel))
        page.wait_for(f"viewer.at.voxel[0] === {voxel[0]}")
        assert crosshairs(page) == [[*voxel, 5]] * 3


def test_the_wheel_turns_to_the_next_slice_in_all_three(page):
    go_to(page, 1)
    page.wheel(*point(page, 1, (20, 10)), -100)
    page.wait_for("viewer.at.voxel[2] !== 5")
    assert crosshairs(page)[0][2] in (4, 6) and len(set(map(tuple, crosshairs(page)))) == 1


def test_zooming_keeps_the_cross_hair_in_place_and_a_double_click_shows_all_again(page, tmp_path):
    page.evaluate("document.getElementById('preset-pe').click()")
    go_to(page, 1)
    page.wheel(*point(page, 2, WATER), -100, ctrl=True)
    page.wait_for("viewer.panels.every(p => p.scene.pan2Dxyzmm[3] > 1.1)")
    assert crosshairs(page) == [[20, 10, 5]] * 3
    page.click(*point(page, 0, (20, 10)), times=2)
    page.wait_for("viewer.panels.every(p => p.scene.pan2Dxyzmm[3] === 1)")
    assert page.evaluate("viewer.panels.map(p => [p.volumes[0].cal_min, p.volumes[0].cal_max])") == [
        *[[-250, 450]] * 2,
        [-200, 200],
    ]


def test_planes_and_the_scale_of_the_difference_can_be_changed(page, tmp_path):
    page.evaluate("document.querySelector('[data-plane=\"1\"]').click()")
    assert page.evaluate("viewer.panels.map(p => p.opts.sliceType)") == [1, 1, 1]
    page.evaluate("document.querySelector('[data-plane=\"0\"]').click()")
    choose(page, "range", 100)
    go_to(page, 0)
    assert colour(page, tmp_path, 2, BALL) == pytest.approx([190, 235, 255], abs=12)


def test_volumes_of_a_server_are_fetched_from_it_alone(browser):
    one = view()
    described = {"name": one.name, "places": as_json(one.places)}
    described |= {name: {"url": f"/key/{name}.nii"} for name in ("original", "reconstruction")}
    text = render_page("served", [described], -1000, 1000).encode()
    contents = {
        "/key/": Content("text/html", lambda: text),
        "/key/original.nii": Content("application/octet-stream", lambda: nifti_bytes(one.original, AFFINE)),
        "/key/reconstruction.nii": Content(
            "application/octet-stream", lambda: nifti_bytes(one.recon, AFFINE)
        ),
    }
    with ViewerServer(contents) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser.open(f"{server.address}/key/")
        browser.wait_for("/^(ready|failed)/.test(document.title)")
        assert browser.evaluate("document.title") == "ready: served" and browser.complaints() == []
        assert browser.evaluate("viewer.at.values") == [150, 50, -100]
        fetched = [url for url in browser.requested() if url.startswith("http")]
        assert fetched == [f"{server.address}{address}" for address in contents]
        server.shutdown()


def test_a_volume_that_is_not_there_is_told_on_the_page(browser):
    described = {"name": "all", "places": [], "original": {"url": "/no"}, "reconstruction": {"url": "/no"}}
    text = render_page("served", [described], -1000, 1000).encode()
    with ViewerServer({"/key/": Content("text/html", lambda: text)}) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser.open(f"{server.address}/key/")
        browser.wait_for("/^(ready|failed)/.test(document.title)")
        said = browser.evaluate("document.getElementById('trouble').textContent")
        assert said == "The volumes cannot be shown: there is nothing at this address"
        server.shutdown()
