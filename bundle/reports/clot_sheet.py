"""Draws inserted emboli, magnified, beside their reconstructions."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from bundle.drawing.planes import EMBOLISM, Row, Sheet, difference_panel, grey_panel

SHOWN_SIZE_MM, SHOWN_CONTRAST = 4, 1.0
PATCH = 48
PANEL_PX = 312
DIFFERENCE_HU = 200.0
OUTSIDE_HU = -1000


def axial_patch(volume: np.ndarray, centre: Sequence[float], outside_hu: int = OUTSIDE_HU) -> np.ndarray:
    """Cuts the 48 x 48 voxels of the axial slice around a place, int16, padded where the volume ends.

    Args:
        volume: (X, Y, Z) in HU.
        centre: X, Y, Z in voxels.
        outside_hu: of the padding.
    """
    x, y, z = (round(at) for at in centre)
    patch = np.full((PATCH, PATCH), outside_hu, np.int16)
    starts, stops = [at - PATCH // 2 for at in (x, y)], [at + PATCH // 2 for at in (x, y)]
    inside = [slice(max(a, 0), min(b, n)) for a, b, n in zip(starts, stops, volume.shape[:2], strict=True)]
    target = tuple(slice(part.start - a, part.stop - a) for part, a in zip(inside, starts, strict=True))
    patch[target] = volume[inside[0], inside[1], z]
    return patch


def clot_sheet(columns: Sequence[str], original: np.ndarray, recons: Mapping[str, np.ndarray]) -> bytes:
    """Draws a sheet as PNG: the original's row, then reconstruction and difference of each arm.

    Args:
        columns: a title over each embolus.
        original: (N, 48, 48) in HU, as `axial_patch` gives them.
        recons: the same patches of reconstructions, by the name of the arm.
    """
    size = PANEL_PX, PANEL_PX
    labels = ["original", *(label for name in recons for label in (name, f"{name} \N{MINUS SIGN} original"))]
    rows = [Row(label, PANEL_PX, () if n else columns) for n, label in enumerate(labels)]
    sheet = Sheet(rows, n_columns=len(columns), column_width=PANEL_PX)
    for column in range(len(columns)):
        real = _as_picture(original[column])
        sheet.place(grey_panel(real, size, EMBOLISM), 0, column)
        for n, recon in enumerate(recons.values()):
            made = _as_picture(recon[column])
            sheet.place(grey_panel(made, size, EMBOLISM), 1 + 2 * n, column)
            sheet.place(difference_panel(made - real, size, DIFFERENCE_HU), 2 + 2 * n, column)
    sheet.colour_bar(DIFFERENCE_HU, row=2)
    sheet.footer(f"{EMBOLISM}; axial, 48 x 48 voxels")
    buffer = io.BytesIO()
    Image.fromarray(sheet.to_array()).save(buffer, format="png")
    return buffer.getvalue()


def _as_picture(patch: np.ndarray) -> np.ndarray:
    """Turns a patch the way radiologists see it: the patient's right on the left, the front up."""
    return np.ascontiguousarray(patch.T[::-1, ::-1], np.float32)
