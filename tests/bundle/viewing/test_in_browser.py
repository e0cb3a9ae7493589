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


def test_a_page_from_a_disk_cannot_ask_anybody(page):
    for address in ("data:,x", "file:///etc/hostname", "http://127.0.0.1:9/"):
        assert page.evaluate(f"fetch('{address}').then(() => 'got it', () => 'refused')") == "refused"
    blocked = [one for one in page.complaints() if "violates the following Content Security Policy" in one]
    assert len(blocked) == 3


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


def green_lines(page, tmp_path, shape, spacing_mm, voxel):
    """Measures the cross-hair in every picture of all panels as a reader sees it.

    Returns for each picture: the shares of its height and of its width that show the line through the voxel,
    and how many pixels wide the upright line is.
    """
    page.screenshot(tmp_path / "lines.png")
    with Image.open(tmp_path / "lines.png") as shot:
        red, green, blue = np.moveaxis(np.asarray(shot.convert("RGB"), np.int16), -1, 0)
    is_line = green - np.maximum(red, blue) > 40
    pictures = page.evaluate(
        "viewer.panels.flatMap(p => { const r = p.canvas.getBoundingClientRect(); return p.screenSlices.map("
        "s => { const [x, y, w, h] = s.leftTopWidthHeight;"
        " return [s.axCorSag, r.x + x + w / 2, r.y + y + h / 2, w / Math.abs(s.fovMM[0])] }) })"
    )
    found = []
    for plane, middle_x, middle_y, px_per_mm in pictures:
        across, up = [(0, 1), (0, 2), (1, 2)][plane]
        sizes = [shape[axis] * spacing_mm[axis] * px_per_mm for axis in (across, up)]
        left, top = middle_x - sizes[0] / 2, middle_y - sizes[1] / 2
        # the patient's right, or the front, is on the left; the front, or the head, is up
        x = round(left + (shape[across] - voxel[across] - 0.5) * spacing_mm[across] * px_per_mm)
        y = round(top + (shape[up] - voxel[up] - 0.5) * spacing_mm[up] * px_per_mm)
        rows, columns = slice(round(top), round(top + sizes[1])), slice(round(left), round(left + sizes[0]))
        upright = is_line[rows, max(x - 2, 0) : x + 2].any(axis=1)
        level = is_line[max(y - 2, 0) : y + 2, columns].any(axis=0)
        thick = np.delete(
            is_line[rows, columns], np.s_[max(y - rows.start - 3, 0) : y - rows.start + 3], axis=0
        )
        found.append((upright.mean(), level.mean(), thick.sum(axis=1).max()))
    return found


@pytest.mark.parametrize("size", [0.3, 6.0], ids=["small", "large"])
def test_the_cross_hair_is_seen_in_every_picture_whatever_the_size_of_the_volume(browser, tmp_path, size):
    shape, spacing_mm = (16, 40, 30), (size, size, 2 * size)
    voxels = np.random.default_rng(0).integers(-1000, 1000, shape, np.int16)
    corners = [Place("first", (0, 0, 0)), Place("middle", (7, 20, 15)), Place("last", (15, 39, 29))]
    thin = View("thin", voxels, voxels // 2, np.diag([*spacing_mm, 1.0]), tuple(corners))
    write_page(tmp_path / "ct.html", "thin", [view(), thin], -1000, 1000)
    browser.open((tmp_path / "ct.html").as_uri())
    browser.wait_for("/^(ready|failed)/.test(document.title)")
    choose(browser, "view", 1)
    browser.wait_for("viewer.shown === 1 && /^ready/.test(document.title)")
    for plane, n_pictures in ((0, 3), (1, 3), (2, 3), (3, 9)):
        browser.evaluate(f"document.querySelector('[data-plane=\"{plane}\"]').click()")
        for n, (place, preset) in enumerate(zip(corners, GREY, strict=True)):
            browser.evaluate(f"document.getElementById('preset-{preset}').click()")
            go_to(browser, n)
            lines = green_lines(browser, tmp_path, shape, spacing_mm, place.voxel)
            assert len(lines) == n_pictures
            for upright, level, thick in lines:
                assert upright > 0.8 and level > 0.75 and thick <= 3, (plane, place.name, lines)


def test_a_view_that_is_chosen_while_another_loads_waits_and_only_the_last_is_shown(browser, tmp_path):
    small, large = (np.full((side,) * 3, 100, np.int16) for side in (8, 12))
    views = [View(name, one, one, AFFINE) for name, one in (("small", small), ("large", large))]
    write_page(tmp_path / "ct.html", "a patient", views, -1000, 1000)
    browser.open((tmp_path / "ct.html").as_uri())
    browser.wait_for("/^ready/.test(document.title)")
    browser.evaluate("""
        Object.assign(window, { loading: 0, most: 0, loaded: 0 });
        for (const panel of viewer.panels) {
          const load = panel.loadFromArrayBuffer.bind(panel);
          panel.loadFromArrayBuffer = async (...how) => {
            most = Math.max(most, ++loading);
            await new Promise((done) => setTimeout(done, 50));
            await load(...how);
            loading--, loaded++;
          };
        }
        for (const n of [1, 0, 1]) {
          document.getElementById("view").value = n;
          document.getElementById("view").dispatchEvent(new Event("change"));
        }
    """)
    browser.wait_for("loaded >= 3 && loading === 0 && /^ready/.test(document.title)")
    assert browser.evaluate("[most, viewer.shown]") == [1, 1]
    assert browser.evaluate("viewer.voxels.map((voxels) => voxels.length)") == [12**3] * 3


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
