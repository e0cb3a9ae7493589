"""Shows results of configs/evaluate.yaml in a browser: original, reconstruction and difference.

    python -m scripts.view OUT
    python -m scripts.view OUT --file PAGE.html [--volume NAME] [--side VOXELS]

The first command serves a list of the volumes on 127.0.0.1 until Ctrl-C; only a browser on this machine that
has the printed address can open it. The second writes one page that opens without a server.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import secrets
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:
    # Started as a file, Python looks beside it first: a scripts/inspect.py would hide the standard module.
    sys.path.pop(0)
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bundle.data.volumes.reading import read_ras
from bundle.reports.kept import IS_STEM
from bundle.reports.tables import FALSE_EMBOLI, TableError, read_false_emboli
from bundle.run.console import CommandParser, csv_cells, tell
from bundle.run.files import open_regular, open_regular_text
from bundle.run.names import printable
from bundle.run.record import run_script
from bundle.viewing.page import as_json, page_text, render_index, render_page, write_page
from bundle.viewing.server import Content, ViewerServer
from bundle.viewing.views import BOX_SIDE, Place, View, invented_places, nifti_bytes, views_of


class ViewError(ValueError):
    """A folder or a volume that cannot be shown; the message names it."""


class Shown(NamedTuple):
    """One volume of an evaluation.

    Attributes:
        name: of the volume.
        page: file that the evaluation wrote; None if it wrote none.
        original: file, or folder of a DICOM series.
        reconstruction: file; None if none was kept.
        places: invented emboli.
    """

    name: str
    page: Path | None
    original: Path
    reconstruction: Path | None
    places: tuple[Place, ...]


class Evaluated(NamedTuple):
    """An output folder: the HU window of its figures, and its volumes."""

    window_hu: tuple[float, float]
    volumes: list[Shown]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line of this module.

    Raises:
        ViewError: if the folder or the volume cannot be shown.
        TableError: if the folder holds no evaluation.
        PageError: if a page would be larger than 40 MiB.
    """
    given = _parse(arguments)
    evaluated = read_evaluated(given.folder)
    if given.file is not None:
        shown = _find(evaluated, given.volume)
        views = _views(shown, evaluated.window_hu, given.side)
        write_page(given.file, shown.name, views, *evaluated.window_hu)
        tell(f"wrote {given.file}")
        return
    contents, start = contents_of(evaluated, secrets.token_urlsafe(16))
    with ViewerServer(contents, given.port) as server:
        tell(f"open {server.address}{start} in a browser of this machine; Ctrl-C ends it", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


def read_evaluated(folder: Path) -> Evaluated:
    """Reads the list of volumes that an evaluation keeps.

    Raises:
        TableError: if the folder holds no evaluation.
        ViewError: if the evaluation has no volume.
    """
    try:
        with open_regular_text(folder / "summary.json") as file:
            about = json.load(file)["about"]
        low, high = (float(end) for end in about["hu_window"])
        with open_regular_text(folder / "volumes.json") as file:
            kept = json.load(file)
        spots = read_false_emboli(folder / FALSE_EMBOLI)
        in_table = {name: (csv_cells([name])[0], about["method"]) for name in kept}
        invented = {
            name: invented_places([spot for spot in spots if (spot.volume, spot.method) == in_table[name]])
            for name in kept
        }
        volumes = [_shown(folder, name, files, invented[name]) for name, files in kept.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TableError(
            f"{folder}: is no output folder of configs/evaluate.yaml ({error!r:.200}); name one"
        ) from error
    if not volumes:
        raise ViewError(f"{folder}: no volume was evaluated; its summary.json says why")
    return Evaluated((low, high), volumes)


def contents_of(evaluated: Evaluated, key: str) -> tuple[dict[str, Content], str]:
    """Returns what the server answers, by address, and the address to begin with.

    Args:
        evaluated: the volumes.
        key: first part of every address, so that other users of this machine cannot guess one.
    """
    start = f"/{key}/"
    lines, contents = [], {}
    for n, shown in enumerate(evaluated.volumes):
        boxes, every = f"{start}{n}/", f"{start}{n}/every-voxel/"
        links: list[str | None] = [None, None]
        if shown.reconstruction is not None or shown.page is not None:
            contents[boxes] = Content("text/html", partial(_boxes_page, shown, evaluated.window_hu))
            links[0] = boxes
        if shown.reconstruction is not None:
            contents |= _whole(shown, evaluated.window_hu, every)
            links[1] = every
        lines.append((shown.name, links))
    index = render_index(lines).encode()
    return contents | {start: Content("text/html", lambda: index)}, start


def _boxes_page(shown: Shown, window_hu: tuple[float, float]) -> bytes:
    if shown.page is not None:
        with open_regular(shown.page) as file:
            return file.read()
    return page_text(shown.name, _views(shown, window_hu, BOX_SIDE), *window_hu).encode()


def _whole(shown: Shown, window_hu: tuple[float, float], address: str) -> dict[str, Content]:
    """Makes a page, and the volumes that it fetches from this server."""
    files = {"original": shown.original, "reconstruction": shown.reconstruction}
    view: dict[str, Any] = {"name": "whole volume, every voxel", "places": as_json(shown.places)}
    view |= {name: {"url": f"{address}{name}.nii"} for name in files}
    text = render_page(shown.name, [view], *window_hu).encode()
    contents = {address: Content("text/html", lambda: text)}
    for name, path in files.items():
        assert path is not None
        contents[f"{address}{name}.nii"] = Content("application/octet-stream", partial(_nifti, path))
    return contents


def _nifti(path: Path) -> bytes:
    volume = read_ras(path)
    return nifti_bytes(volume.voxels, volume.affine)


def _views(shown: Shown, window_hu: tuple[float, float], side: int) -> list[View]:
    if shown.reconstruction is None:
        raise ViewError(f"{shown.name}: no reconstruction was kept; evaluate with --write_volumes true")
    original, recon = read_ras(shown.original), read_ras(shown.reconstruction)
    shapes = original.voxels.shape, recon.voxels.shape
    if shapes[0] != shapes[1]:
        raise ViewError(
            f"{shown.name}: original and reconstruction must have one shape, got {shapes[0]} and "
            f"{shapes[1]}; evaluate again"
        )
    return views_of(original.voxels, recon.voxels, original.affine, window_hu, shown.places, side)


def _shown(folder: Path, name: str, files: Mapping[str, str], places: Sequence[Place]) -> Shown:
    stem, recon = files["stem"], files["reconstruction"]
    if not IS_STEM.fullmatch(stem):
        raise ValueError(f"stem {stem!r}")
    page = folder / "viewer" / f"{stem}.html"
    return Shown(
        printable(name), page if page.is_file() else None, Path(files["original"]),
        Path(recon) if recon else None, tuple(places),
    )  # fmt: skip


def _find(evaluated: Evaluated, name: str | None) -> Shown:
    names = [shown.name for shown in evaluated.volumes]
    if name is None and len(names) == 1:
        return evaluated.volumes[0]
    if name not in names:
        raise ViewError(f"`--volume` must be one of {', '.join(names)}, got {name}; name one")
    return evaluated.volumes[names.index(name)]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("folder", type=Path, metavar="OUT", help="output folder of configs/evaluate.yaml")
    add("--port", type=_port, default=0, help="of the server; 0 takes any that is free")
    add("--file", type=Path, metavar="PAGE.html", help="write one page that opens without a server, and end")
    add("--volume", metavar="NAME", help="which volume the page shows, where there are several")
    add("--side", type=_side, default=BOX_SIDE, help=f"of the page's boxes, in voxels (default {BOX_SIDE})")
    return parser.parse_args(arguments)


def _port(text: str) -> int:
    return _number(text, 0, 65535)


def _side(text: str) -> int:
    return _number(text, 16, 1024)


def _number(text: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
        raise argparse.ArgumentTypeError(f"must be a whole number from {low} to {high}, got {text!r}")
    return int(text)


if __name__ == "__main__":
    run_script(main)
