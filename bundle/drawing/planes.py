"""Draws CT planes: cuts in radiological convention, HU windows, signed differences, labelled sheets.

Volumes are RAS: (X, Y, Z) grows towards the patient's right, front and head. A picture shows the patient's
right on its left, front or head up, and in the sagittal plane the front on its left.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

Volume = np.ndarray | torch.Tensor

AIR_BELOW_HU, BODY_SHARE = -300, 0.005
DIFFERENCE_COLOURS = ((190, 235, 255), (40, 125, 235), (16, 16, 18), (225, 95, 20), (255, 228, 150))
"""Of signed differences, evenly spaced: blue below 0, dark at 0, orange above; colour-blind eyes see both."""

TEXT, DIM_TEXT = (235, 235, 235), (165, 165, 165)
FONT_PX, SMALLEST_FONT_PX = 17, 9
LINE_PX = 24
GAP_PX = 6
LABEL_PX = 30
BAR_PX = 92
SMALLEST_COLUMN_PX, SMALLEST_ROW_PX = 310, 108  # what titles and labels need


class HUWindow(NamedTuple):
    """A display window: grey runs from `level - width / 2` (black) to `level + width / 2` (white), in HU."""

    name: str
    level: float
    width: float

    def __str__(self) -> str:
        return f"{self.name}: level {number(self.level)}, width {number(self.width)} HU"


class Plane(NamedTuple):
    """An anatomical plane of a RAS volume; the letters stand at the left and upper border of its picture."""

    name: str
    axis: int
    left: str
    up: str
    order: str


LUNG = HUWindow("Lung", -600, 1500)
MEDIASTINUM = HUWindow("Mediastinum", 40, 400)
EMBOLISM = HUWindow("Pulmonary embolism", 100, 700)
WINDOWS = {"lung": LUNG, "mediastinum": MEDIASTINUM, "pe": EMBOLISM}
PLANES = {
    "axial": Plane("axial", 2, "R", "A", "superior to inferior"),
    "coronal": Plane("coronal", 1, "R", "S", "anterior to posterior"),
    "sagittal": Plane("sagittal", 0, "A", "S", "right to left"),
}


def cut(volume: Volume, plane: Plane, index: int, hu_min: float, hu_max: float) -> np.ndarray:
    """Returns one plane of a RAS volume (X, Y, Z) as float32 (rows, columns), clipped to the window in HU."""
    where = tuple(index if axis == plane.axis else slice(None) for axis in range(3))
    pixels = volume[where]
    if isinstance(pixels, torch.Tensor):
        pixels = pixels.detach().as_subclass(torch.Tensor).float().cpu().numpy()
    hu = np.nan_to_num(pixels.astype(np.float32), nan=hu_min).clip(hu_min, hu_max)
    return hu.T[::-1, ::-1]


def slices_with_body(volume: Volume, plane: Plane) -> range:
    """Returns the slices across an axis from the first to the last that shows more than air.

    A slice shows more than air if over 0.5 % of its voxels are above -300 HU. If none does, all are returned.

    Args:
        volume: (X, Y, Z) in HU.
        plane: the plane whose slices are meant.
    """
    shown = []
    for index in range(volume.shape[plane.axis]):
        where = tuple(index if axis == plane.axis else slice(None) for axis in range(3))
        above = volume[where] > AIR_BELOW_HU
        if float(above.sum()) > BODY_SHARE * math.prod(above.shape):
            shown.append(index)
    return range(shown[0], shown[-1] + 1) if shown else range(volume.shape[plane.axis])


def panel_size(
    shape: Sequence[int], spacing_mm: Sequence[float], plane: Plane, px_per_mm: float
) -> tuple[int, int]:
    """Returns width and height in pixels of a plane in its true aspect."""
    width, height = (max(1, round(shape[n] * spacing_mm[n] * px_per_mm)) for n in range(3) if n != plane.axis)
    return width, height


def grey_panel(hu: np.ndarray, size: tuple[int, int], window: HUWindow) -> Image.Image:
    """Returns a plane in grey, resized before windowing: an average of grey values is no average of HU."""
    low = window.level - window.width / 2
    grey = ((_resized(hu, size) - low) * (255 / window.width)).clip(0, 255).round()
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def difference_panel(difference_hu: np.ndarray, size: tuple[int, int], scale_hu: float) -> Image.Image:
    """Returns a signed difference in colours; `scale_hu` is the difference at the ends of the colour bar."""
    return Image.fromarray(_colours(_resized(difference_hu, size) / scale_hu))


def mark(panel: Image.Image, plane: Plane, px_per_mm: float | None = None) -> Image.Image:
    """Writes the letters of the patient's sides on a panel and, with a scale, a bar of 50 (or 10) mm."""
    _outlined(panel, (5, panel.height / 2), plane.left, "lm")
    _outlined(panel, (panel.width / 2, 4), plane.up, "mt")
    if px_per_mm is not None:
        length_mm = 50 if 50 * px_per_mm < 0.75 * panel.width else 10
        left, right, bottom = panel.width - 10 - length_mm * px_per_mm, panel.width - 10, panel.height - 10
        draw = ImageDraw.Draw(panel)
        draw.rectangle([left - 2, bottom - 3, right + 2, bottom + 3], fill=(0, 0, 0))
        draw.rectangle([left, bottom - 1, right, bottom + 1], fill=TEXT)
        _outlined(panel, (right, bottom - 6), f"{length_mm} mm", "rb")
    return panel


def number(value: float) -> str:
    """Returns a number the way it is printed: a true minus sign, no needless decimals."""
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")


class Row(NamedTuple):
    """A row of panels on a sheet: name at its left, height in pixels, a title over each panel or none."""

    label: str
    height: int
    titles: Sequence[str] = ()


class Sheet:
    """A black page of panels in rows and columns, with titles, a colour bar and lines of text below.

    Args:
        rows: from top to bottom; lines of a title are separated by newlines.
        n_columns: panels in a row.
        column_width: in pixels; smaller panels are centred.
        n_lines: lines of text below the panels.
    """

    def __init__(self, rows: Sequence[Row], n_columns: int, column_width: int, n_lines: int = 1) -> None:
        self.column_width = max(column_width, SMALLEST_COLUMN_PX)
        self.heights = [max(row.height, SMALLEST_ROW_PX) for row in rows]
        self.tops: list[int] = []
        self.title_tops: list[int] = []
        bottom = 0
        for row, height in zip(rows, self.heights, strict=True):
            self.title_tops.append(bottom + GAP_PX // 2)
            n_title_lines = max((title.count("\n") + 1 for title in row.titles), default=0)
            self.tops.append(bottom + GAP_PX + n_title_lines * LINE_PX)
            bottom = self.tops[-1] + height
        self.bottom = bottom + GAP_PX
        self.right = LABEL_PX + n_columns * (self.column_width + GAP_PX)
        self.image = Image.new("RGB", (self.right + BAR_PX, self.bottom + n_lines * LINE_PX + GAP_PX))
        for n, row in enumerate(rows):
            self._label(row.label, n)
            for column, title in enumerate(row.titles):
                self._title(title, n, column)

    def copy(self) -> Sheet:
        """Returns a sheet with the same layout and what is drawn so far."""
        twin = copy.copy(self)
        twin.image = self.image.copy()
        return twin

    def place(self, panel: Image.Image, row: int, column: int) -> None:
        """Puts a panel into the middle of its cell."""
        x = self._left(column) + (self.column_width - panel.width) // 2
        self.image.paste(panel, (x, self.tops[row] + (self.heights[row] - panel.height) // 2))

    def note(self, lines: Sequence[str], row: int, column: int) -> None:
        """Writes lines of text into a cell instead of a panel."""
        draw = ImageDraw.Draw(self.image)
        y = self.tops[row] + (self.heights[row] - len(lines) * LINE_PX) // 2
        for n, line in enumerate(lines):
            font = _fitting(line, FONT_PX, self.column_width - 8)
            draw.text((self._left(column) + 8, y + n * LINE_PX), line, font=font, fill=TEXT)

    def footer(self, text: str, line: int = 0) -> None:
        """Writes one line below the panels."""
        at = (LABEL_PX, self.bottom + line * LINE_PX)
        font = _fitting(text, FONT_PX - 1, self.image.width - LABEL_PX)
        ImageDraw.Draw(self.image).text(at, text, font=font, fill=DIM_TEXT)

    def colour_bar(self, scale_hu: float, row: int) -> None:
        """Draws the colours of signed differences beside a row, with five ticks in HU."""
        draw, (x, width, margin) = ImageDraw.Draw(self.image), (self.right + 4, 18, 10)
        top, height = self.tops[row] + margin, self.heights[row] - 2 * margin
        ramp = np.repeat(np.linspace(1, -1, height, dtype=np.float32)[:, None], width, axis=1)
        self.image.paste(Image.fromarray(_colours(ramp)), (x, top))
        for share in (1.0, 0.5, 0.0, -0.5, -1.0):
            y = top + (1 - share) / 2 * (height - 1)
            draw.line([(x + width, y), (x + width + 4, y)], fill=TEXT)
            value = ("+" if share > 0 else "") + number(share * scale_hu)
            draw.text((x + width + 7, y), value, font=_font(FONT_PX - 3), fill=TEXT, anchor="lm")
        draw.text((x, self.tops[row] - 2), "HU", font=_font(FONT_PX - 3), fill=TEXT, anchor="lb")

    def to_array(self) -> np.ndarray:
        """Returns the page as uint8 (H, W, 3)."""
        return np.asarray(self.image)

    def _left(self, column: int) -> int:
        return LABEL_PX + column * (self.column_width + GAP_PX)

    def _title(self, title: str, row: int, column: int) -> None:
        lines = title.split("\n")
        draw, x = ImageDraw.Draw(self.image), self._left(column) + self.column_width / 2
        for n, line in enumerate(lines):
            y = self.title_tops[row] + (n + 0.5) * LINE_PX
            fill = TEXT if n == 0 else DIM_TEXT
            font = _fitting(line, FONT_PX - 2 * (n > 0), self.column_width)
            draw.text((x, y), line, font=font, fill=fill, anchor="mm")

    def _label(self, label: str, row: int) -> None:
        strip = Image.new("RGB", (self.heights[row], LABEL_PX))
        at, font = (strip.width / 2, LABEL_PX / 2), _font(FONT_PX)
        if font.getlength(label) > strip.width:  # beside a thin slab
            label, font = label.replace(", ", "\n"), _font(FONT_PX - 6)
        ImageDraw.Draw(strip).text(at, label, font=font, fill=TEXT, anchor="mm", align="center", spacing=1)
        self.image.paste(strip.transpose(Image.Transpose.ROTATE_90), (0, self.tops[row]))


def _outlined(panel: Image.Image, at: tuple[float, float], text: str, anchor: str) -> None:
    """Writes text that can be read on black and on white."""
    ImageDraw.Draw(panel).text(
        at, text, font=_font(FONT_PX - 2), fill=TEXT, anchor=anchor, stroke_width=2, stroke_fill=(0, 0, 0)
    )


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes bilinearly, averaging where it shrinks: sharper kernels draw dark rims around bone."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BILINEAR))


def _colours(share: np.ndarray) -> np.ndarray:
    """Turns [-1, 1] into RGB: blue below 0, orange above (colour-blind eyes see both), dark at 0."""
    return _colour_table()[((share.clip(-1, 1) + 1) * 255).round().astype(np.int16)]


@lru_cache
def _colour_table() -> np.ndarray:
    """Returns the colours as uint8 (511, 3); the middle entry stands for a difference of 0."""
    stops = np.array(DIFFERENCE_COLOURS)
    at, shares = np.linspace(-1, 1, len(stops)), np.linspace(-1, 1, 511)
    channels = [np.interp(shares, at, stops[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def _fitting(text: str, size: int, width: int) -> ImageFont.FreeTypeFont:
    """Returns the font of this size, or the largest smaller one in which the text is not too wide."""
    fitting = (one for one in range(size, SMALLEST_FONT_PX, -1) if _font(one).getlength(text) <= width)
    return _font(next(fitting, SMALLEST_FONT_PX))


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # Pillow's own font lacks the minus sign and every accented letter
    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size
    )
