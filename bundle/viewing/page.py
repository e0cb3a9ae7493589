"""Builds one HTML page that shows volumes with NiiVue and loads nothing from a network.

NiiVue and its licences lie in `niivue/`, as npm has them.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from bundle.drawing.planes import DIFFERENCE_COLOURS, WINDOWS
from bundle.run.atomic import write_text
from bundle.viewing.views import Place, View, nifti_bytes

MAX_PAGE_BYTES = 40 * 2**20
MIB = 2**20
COMPRESSION = 6
PARTS = ("original", "reconstruction")
HERE = Path(__file__).parent


class PageError(ValueError):
    """A page that cannot be written; the message names it and says what to do."""


def write_page(
    path: Path, title: str, views: Sequence[View], hu_min: float, hu_max: float, notice: str = ""
) -> None:
    """Writes one file that a browser opens from a disk; see `page_text`.

    Raises:
        PageError: if the page is larger than 40 MiB, which browsers open slowly or not at all.
    """
    text = page_text(title, views, hu_min, hu_max, notice)
    if len(text) > MAX_PAGE_BYTES:
        raise PageError(
            f"{path}: a page must not be larger than {MAX_PAGE_BYTES / MIB:g} MiB, got {len(text) / MIB:.1f} "
            "MiB; choose smaller boxes, or look at the volume with `python -m scripts.view OUT`"
        )
    write_text(path, text)


def page_text(title: str, views: Sequence[View], hu_min: float, hu_max: float, notice: str = "") -> str:
    """Returns a page that holds its volumes.

    Args:
        title: what the volume is called.
        views: at least one, in the order in which they are offered.
        hu_min: lower end of the window to which differences are clipped.
        hu_max: upper end.
        notice: a sentence above the pictures.
    """
    blocks, described = [], []
    for n, view in enumerate(views):
        files = {}
        for part, voxels in zip(PARTS, (view.original, view.recon), strict=True):
            packed = gzip.compress(nifti_bytes(voxels, view.affine), COMPRESSION, mtime=0)
            blocks.append((f"{part}-{n}", base64.b64encode(packed).decode()))
            files[part] = {"block": f"{part}-{n}"}
        described.append({"name": view.name, "places": as_json(view.places)} | files)
    return render_page(title, described, hu_min, hu_max, notice, blocks)


def as_json(places: Sequence[Place]) -> list[dict[str, Any]]:
    """Returns places in the form that the page's script reads."""
    return [{"name": place.name, "voxel": list(place.voxel)} for place in places]


def render_page(
    title: str,
    views: Sequence[dict[str, Any]],
    hu_min: float,
    hu_max: float,
    notice: str = "",
    blocks: Sequence[tuple[str, str]] = (),
) -> str:
    """Returns the page as text.

    Args:
        title: of the page.
        views: name, places, and for `original` and `reconstruction` each `{"block": id}` or `{"url": path}`.
        hu_min: lower end of the window to which differences are clipped.
        hu_max: upper end.
        notice: a sentence above the pictures.
        blocks: id and base64 of compressed NIfTI files inside the page.
    """
    content = {
        "views": list(views),
        "window_hu": [hu_min, hu_max],
        "presets": [
            {"id": key, "name": window.name, "level": window.level, "width": window.width}
            for key, window in WINDOWS.items()
        ],
        "difference_colours": [list(colour) for colour in DIFFERENCE_COLOURS],
    }
    scripts = [_asset("niivue/niivue.umd.js"), _asset("viewer.js")]
    # Scripts run only if their hash is named here; names out of files never become one.
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    sources = " ".join(f"'sha256-{one}'" for one in hashes)
    # A page that holds its volumes may connect to nothing, a page of the server only to that server.
    reached = "'self'" if any("url" in view[part] for view in views for part in PARTS) else "'none'"
    data = json.dumps(content).replace("<", "\\u003c")
    held = "".join(
        f'<script type="application/octet-stream" id="{name}">{b}</script>\n' for name, b in blocks
    )
    return Template(_asset("page.html")).substitute(
        title=escape(title),
        notice=escape(notice),
        sources=sources,
        reached=reached,
        data=f'<script type="application/json" id="content">{data}</script>\n{held}',
        scripts="".join(f"<script>{text}</script>\n" for text in scripts),
    )


def render_index(lines: Sequence[tuple[str, Sequence[str | None]]]) -> str:
    """Returns a page that lists volumes.

    Args:
        lines: name of each volume and the addresses of its pages; None if it has no reconstruction.
    """
    rows = []
    for name, links in lines:
        cells = [
            f'<a href="{escape(link)}">open</a>' if link else "no reconstruction was kept" for link in links
        ]
        rows.append("".join(f"<td>{cell}</td>" for cell in (escape(name), *cells)))
    return Template(_asset("index.html")).substitute(lines="".join(f"<tr>{row}</tr>\n" for row in rows))


@lru_cache
def _asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")
