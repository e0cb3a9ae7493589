"""Draws reconstructions beside their original: three planes, three windows, signed differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bundle.drawing.planes import (
    EMBOLISM,
    PLANES,
    WINDOWS,
    HUWindow,
    Plane,
    Row,
    Sheet,
    Volume,
    cut,
    difference_panel,
    grey_panel,
    mark,
    number,
    panel_size,
)

DIFFERENCE_HU = 200.0


def render_triptych(
    image: Volume,
    recon: Volume,
    spacing_mm: Sequence[float],
    windows: Sequence[HUWindow] = tuple(WINDOWS.values()),
    *,
    hu_min: float = -1000,
    hu_max: float = 1000,
    centre: Sequence[int] | None = None,
    difference_hu: float = DIFFERENCE_HU,
    panel_px: int = 384,
    caption: str = "",
) -> np.ndarray:
    """Draws a reconstruction beside its original.

    Rows are the axial, coronal and sagittal plane; columns are original and reconstruction in each display
    window, then the signed difference in HU on a fixed scale, so that pictures of different runs compare. The
    display is radiological: the patient's right on the left, head or front up, millimetres true to scale.

    Args:
        image: original, (X, Y, Z) in HU with RAS axes, array or tensor on any device.
        recon: reconstruction, same shape.
        spacing_mm: of a voxel along X, Y, Z.
        windows: display windows, a pair of columns each.
        hu_min: lower end of the network's window in HU; lower values are clipped to it, as for the metrics.
        hu_max: upper end of the network's window in HU.
        centre: voxel through which the planes are laid; None is the middle of the volume.
        difference_hu: difference at the ends of the colour bar.
        panel_px: pixels along the longest side of the volume.
        caption: what the picture shows, e.g. name and iteration; written below it.

    Returns:
        uint8 (H, W, 3).

    Raises:
        ValueError: if the volumes are not 3D and of one shape, or `centre` lies outside.
    """
    shape, centre = _checked(image, [recon], centre)
    px_per_mm = panel_px / max(n * mm for n, mm in zip(shape, spacing_mm, strict=True))
    sizes = [panel_size(shape, spacing_mm, plane, px_per_mm) for plane in PLANES.values()]
    sheet = Sheet(
        _rows(centre, shape, sizes, windows),
        n_columns=2 * len(windows) + 1,
        column_width=max(width for width, _ in sizes),
    )
    for row, (plane, size) in enumerate(zip(PLANES.values(), sizes, strict=True)):
        real, fake = (cut(volume, plane, centre[plane.axis], hu_min, hu_max) for volume in (image, recon))
        for n, window in enumerate(windows):
            sheet.place(mark(grey_panel(real, size, window), plane, None if n else px_per_mm), row, 2 * n)
            sheet.place(mark(grey_panel(fake, size, window), plane), row, 2 * n + 1)
        sheet.place(mark(difference_panel(fake - real, size, difference_hu), plane), row, 2 * len(windows))
    sheet.colour_bar(difference_hu, row=0)
    sheet.footer(_footer(shape, spacing_mm, hu_min, hu_max, caption))
    return sheet.to_array()


def render_comparison(
    image: Volume,
    recons: Mapping[str, Volume],
    spacing_mm: Sequence[float],
    *,
    hu_min: float = -1000,
    hu_max: float = 1000,
    centre: Sequence[int] | None = None,
    difference_hu: float = DIFFERENCE_HU,
    panel_px: int = 384,
    caption: str = "",
) -> np.ndarray:
    """Draws several reconstructions of one volume beside the original, all at one scale.

    Columns are the original, each reconstruction, and the signed difference of each in HU. The axial plane is
    drawn in every window, the coronal and the sagittal plane in the window for pulmonary embolism. All else
    is as in `render_triptych`.

    Args:
        image: original, (X, Y, Z) in HU with RAS axes, array or tensor on any device.
        recons: reconstructions of the same shape, by the name that stands over them.
        spacing_mm: of a voxel along X, Y, Z.
        hu_min: lower end of the network's window in HU.
        hu_max: upper end of the network's window in HU.
        centre: voxel through which the planes are laid; None is the middle of the volume.
        difference_hu: difference at the ends of the colour bar.
        panel_px: pixels along the longest side of the volume.
        caption: what the picture shows; written below it.

    Returns:
        uint8 (H, W, 3).

    Raises:
        ValueError: if there is no reconstruction, the volumes are not 3D and of one shape, or `centre` lies
            outside.
    """
    if not recons:
        raise ValueError("`recons` must hold at least one reconstruction, got none")
    shape, centre = _checked(image, list(recons.values()), centre)
    axial, coronal, sagittal = PLANES.values()
    views = [(axial, window) for window in WINDOWS.values()] + [(coronal, EMBOLISM), (sagittal, EMBOLISM)]
    px_per_mm = panel_px / max(n * mm for n, mm in zip(shape, spacing_mm, strict=True))
    sizes = [panel_size(shape, spacing_mm, plane, px_per_mm) for plane, _ in views]
    names = [*recons, *(f"{name} \N{MINUS SIGN} original" for name in recons)]
    rows = []
    for n, ((plane, window), (_, height)) in enumerate(zip(views, sizes, strict=True)):
        titles = [f"Original\n{window}", *names] if n == 0 else [f"{window}"]
        rows.append(Row(_position(plane, centre, shape), height, titles))
    sheet = Sheet(rows, n_columns=1 + len(names), column_width=max(width for width, _ in sizes))
    for row, ((plane, window), size) in enumerate(zip(views, sizes, strict=True)):
        real = cut(image, plane, centre[plane.axis], hu_min, hu_max)
        sheet.place(mark(grey_panel(real, size, window), plane, px_per_mm), row, 0)
        for n, recon in enumerate(recons.values(), start=1):
            fake = cut(recon, plane, centre[plane.axis], hu_min, hu_max)
            sheet.place(mark(grey_panel(fake, size, window), plane), row, n)
            if row in (0, 3, 4):  # the difference is the same in every window
                difference = difference_panel(fake - real, size, difference_hu)
                sheet.place(mark(difference, plane), row, len(recons) + n)
    sheet.colour_bar(difference_hu, row=0)
    sheet.footer(_footer(shape, spacing_mm, hu_min, hu_max, caption))
    return sheet.to_array()


def _checked(
    image: Volume, recons: Sequence[Volume], centre: Sequence[int] | None
) -> tuple[tuple[int, ...], list[int]]:
    """Returns the common shape, and the voxel through which planes are laid."""
    shape = tuple(image.shape)
    for recon in recons:
        if len(shape) != 3 or shape != tuple(recon.shape):
            raise ValueError(
                f"`image` and `recon` must be volumes (X, Y, Z) of one shape, got {shape} and "
                f"{tuple(recon.shape)}; drop batch and channel axes first"
            )
    centre = [size // 2 for size in shape] if centre is None else list(centre)
    if any(not 0 <= at < size for at, size in zip(centre, shape, strict=True)):
        raise ValueError(f"`centre` must lie inside the volume {shape}, got {centre}; give voxels, not mm")
    return shape, centre


def _position(plane: Plane, centre: Sequence[int], shape: Sequence[int]) -> str:
    return f"{plane.name.capitalize()}, slice {centre[plane.axis] + 1} of {shape[plane.axis]}"


def _rows(
    centre: Sequence[int], shape: Sequence[int], sizes: Sequence[tuple[int, int]], windows: Sequence[HUWindow]
) -> list[Row]:
    titles = [f"{role}\n{window}" for window in windows for role in ("Original", "Reconstruction")]
    titles.append("Difference\nreconstruction \N{MINUS SIGN} original")
    return [
        Row(
            _position(plane, centre, shape),
            height,
            () if n else titles,
        )
        for n, (plane, (_, height)) in enumerate(zip(PLANES.values(), sizes, strict=True))
    ]


def _footer(
    shape: Sequence[int], spacing_mm: Sequence[float], hu_min: float, hu_max: float, caption: str
) -> str:
    times = " \N{MULTIPLICATION SIGN} "
    geometry = f"{times.join(map(str, shape))} voxels of {times.join(f'{mm:.3g}' for mm in spacing_mm)} mm"
    clipped = f"values clipped to {number(hu_min)} to {number(hu_max)} HU"
    return ", ".join(filter(None, (caption, geometry, clipped)))
