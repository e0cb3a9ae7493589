"""Makes videos of original, reconstruction and signed difference side by side, slice by slice."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import imageio_ffmpeg
import numpy as np

from bundle.drawing.planes import (
    EMBOLISM,
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
    slices_with_body,
)
from bundle.run.atomic import complete_or_absent

BLOCK_PX = 16  # encoders work in blocks of this side; other sizes are rescaled or refused by some players
# players take HD video for BT.709: convert to it and say so, or colours shift
BT709 = "scale=out_color_matrix=bt709,setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709"
MINUS = "\N{MINUS SIGN}"


class Display(NamedTuple):
    """Says how HU become pixels; it is the same in every frame.

    Attributes:
        window: display window of original and reconstruction.
        difference_hu: difference at the ends of the colour bar.
        hu_min: lower end of the network's window; both volumes are clipped to it before anything is drawn.
        hu_max: upper end of the network's window.
        panel_px: pixels along the longest side of the volume.
    """

    window: HUWindow = EMBOLISM
    difference_hu: float = 200.0
    hu_min: float = -1000.0
    hu_max: float = 1000.0
    panel_px: int = 512


class VideoError(RuntimeError):
    """A video that could not be written; the message begins with its file name."""


def write_comparison_video(
    path: Path,
    image: Volume,
    recons: Mapping[str, Volume],
    spacing_mm: Sequence[float],
    plane: Plane,
    fps: float = 10,
    display: Display | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Writes an H.264 video (yuv420p, plays everywhere) of the slices across one axis.

    With one reconstruction, original, reconstruction and difference stand side by side. With two, the upper
    row holds original, first and second, the lower one their differences from the original. Millimetres are
    true to scale, and the display is radiological. Slices of pure air at both ends are left out.

    Args:
        path: file to write, .mp4; it appears when it is complete.
        image: original, (X, Y, Z) in HU with RAS axes.
        recons: one or two reconstructions of the same shape by the name that stands over them.
        spacing_mm: of a voxel along X, Y, Z.
        plane: one of `bundle.drawing.planes.PLANES`.
        fps: slices per second.
        display: windows and scales; None is the default one.
        notes: lines of text: below the panels, or in the free cell beside two differences.

    Raises:
        ValueError: if shapes differ, or there are not one or two reconstructions, or `fps` is not positive.
        VideoError: if the encoder fails.
    """
    if not fps > 0:
        raise ValueError(f"`fps` must be above 0, got {fps}; give slices per second")
    if len(recons) not in (1, 2):
        raise ValueError(f"`recons` must hold one or two reconstructions, got {len(recons)}")
    shapes = {tuple(volume.shape) for volume in (image, *recons.values())}
    if len(shapes) != 1:
        raise ValueError(f"`image` and `recons` must have one shape, got {sorted(shapes)}")
    frames = _frames(image, recons, spacing_mm, plane, display or Display(), notes)
    with complete_or_absent(path) as unfinished:
        n_frames = _encode(unfinished, frames, fps)
        written, _ = imageio_ffmpeg.count_frames_and_secs(str(unfinished)) if unfinished.is_file() else (0, 0)
        if written != n_frames:
            raise VideoError(f"{path}: the encoder wrote {written} of {n_frames} frames; is the disk full?")


def _frames(
    image: Volume,
    recons: Mapping[str, Volume],
    spacing_mm: Sequence[float],
    plane: Plane,
    display: Display,
    notes: Sequence[str],
) -> Iterator[np.ndarray]:
    """Yields uint8 (H, W, 3) from head to foot, front to back or right to left."""
    extent_mm = [size * mm for size, mm in zip(image.shape, spacing_mm, strict=True)]
    px_per_mm = display.panel_px / max(extent_mm)
    size = panel_size(image.shape, spacing_mm, plane, px_per_mm)
    page = _page(list(recons), plane, size, display, notes)
    n_slices = image.shape[plane.axis]
    for index in reversed(slices_with_body(image, plane)):
        sheet = page.copy()
        real = cut(image, plane, index, display.hu_min, display.hu_max)
        sheet.place(mark(grey_panel(real, size, display.window), plane, px_per_mm), 0, 0)
        errors = []
        for n, (name, recon) in enumerate(recons.items(), start=1):
            fake = cut(recon, plane, index, display.hu_min, display.hu_max)
            sheet.place(mark(grey_panel(fake, size, display.window), plane), 0, n)
            difference = mark(difference_panel(fake - real, size, display.difference_hu), plane)
            sheet.place(difference, *((0, 2) if len(recons) == 1 else (1, n)))
            errors.append(f"{name} {np.abs(fake - real).mean():.1f} HU")
        position = f"{plane.name.capitalize()} slice {index + 1} of {n_slices}, playing {plane.order}"
        sheet.footer(position)
        sheet.footer(f"Mean absolute error of this slice: {', '.join(errors)}", line=1)
        yield _padded(sheet.to_array())


def _page(
    names: Sequence[str], plane: Plane, size: tuple[int, int], display: Display, notes: Sequence[str]
) -> Sheet:
    """Draws what all frames share."""
    label = plane.name.capitalize()
    original = f"Original\n{display.window}"
    clipped = f"Values clipped to {number(display.hu_min)} to {number(display.hu_max)} HU"
    if len(names) == 1:
        titles = [original, names[0], f"Difference\nreconstruction {MINUS} original"]
        sheet = Sheet([Row(label, size[1], titles)], 3, size[0], n_lines=3)
        sheet.footer(". ".join(filter(None, [", ".join(notes), clipped])), line=2)
    else:
        rows = [
            Row(label, size[1], [original, *names]),
            Row("Difference", size[1], ["", *(f"{name} {MINUS} original" for name in names)]),
        ]
        sheet = Sheet(rows, 3, size[0], n_lines=3)
        sheet.note(notes, 1, 0)
        sheet.footer(clipped, line=2)
    sheet.colour_bar(display.difference_hu, row=len(names) - 1)
    return sheet


def _padded(frame: np.ndarray) -> np.ndarray:
    """Pads a frame with black at the right and at the bottom, up to whole blocks."""
    bottom, right = (-side % BLOCK_PX for side in frame.shape[:2])
    return np.pad(frame, ((0, bottom), (0, right), (0, 0)))


def _encode(path: Path, frames: Iterator[np.ndarray], fps: float) -> int:
    """Returns the number of frames that were handed to the encoder."""
    first = next(frames)
    encoder = imageio_ffmpeg.write_frames(
        str(path),
        (first.shape[1], first.shape[0]),
        fps=fps,
        quality=5.5,  # constant rate factor 22; with CT noise, a factor of 15 takes more than twice the space
        macro_block_size=BLOCK_PX,
        ffmpeg_log_level="error",
        output_params=["-vf", BT709, "-preset", "veryfast", "-movflags", "+faststart"],
    )
    encoder.send(None)
    n_frames = 0
    try:
        for frame in itertools.chain([first], frames):
            encoder.send(np.ascontiguousarray(frame))
            n_frames += 1
    except OSError as error:
        raise VideoError(
            f"{path.name}: the encoder stopped after {n_frames} frames; see its message above"
        ) from error
    finally:
        encoder.close()
    return n_frames
