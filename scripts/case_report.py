"""Writes reports of a reconstructed volume: figures in a file and a table, a picture, and videos."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from bundle.data.volumes.reading import read_ras
from bundle.drawing.planes import PLANES
from bundle.drawing.triptych import render_comparison, render_triptych
from bundle.drawing.video import Display, write_comparison_video
from bundle.metrics.reconstruction import Figures, reconstruction_figures
from bundle.run.atomic import complete_or_absent, write_text
from bundle.run.names import printable

POSTFIX = "_recon.nii.gz"
COLUMNS = {
    "PSNR dB": ("psnr", ".2f"),
    "SSIM": ("ssim", ".4f"),
    "MAE HU": ("mae_hu", ".1f"),
    "RMSE HU": ("rmse_hu", ".1f"),
    "grid": ("grid", ".1f"),
}
LONGEST_TITLE = 32


class CaseFigures(NamedTuple):
    """A volume's name, and its figures by the label of each checkpoint."""

    name: str
    figures: dict[str, Figures]


def report_case(
    image_path: Path, recon_paths: Mapping[str, Path], axes: Sequence[str], fps: float, display: Display
) -> CaseFigures:
    """Compares a volume with its reconstructions; writes figures, pictures and videos.

    `<name>_figures.json`, `<name>_picture.png` and `<name>_<axis>.mp4` are written beside the first
    reconstruction `<name>_recon.nii.gz`, and a picture beside the second. Two reconstructions also give
    `<name>_comparison.png`: original, first and second at one scale.

    Args:
        image_path: original NIfTI volume.
        recon_paths: one or two reconstructed NIfTI volumes by the label of their checkpoint.
        axes: names of `bundle.drawing.planes.PLANES` to make videos of.
        fps: slices per second.
        display: windows and scales; its HU window is also that of the figures.

    Returns:
        Name and figures.
    """
    original = read_ras(image_path)
    image, spacing_mm = torch.from_numpy(original.voxels), original.spacing_mm
    recons = {label: torch.from_numpy(read_ras(path).voxels) for label, path in recon_paths.items()}
    hu_min, hu_max = display.hu_min, display.hu_max
    figures = {label: reconstruction_figures(image, recon, hu_min, hu_max) for label, recon in recons.items()}
    first = next(iter(recon_paths.values()))
    name = first.name.removesuffix(POSTFIX)
    record = _record(image_path, recon_paths, figures, hu_min, hu_max)
    write_text(first.with_name(f"{name}_figures.json"), json.dumps(record, indent=2, allow_nan=False) + "\n")
    for label, path in recon_paths.items():
        caption = f"{name}, {label}, PSNR {figures[label].psnr:.2f} dB, SSIM {figures[label].ssim:.4f}"
        picture = render_triptych(
            image, recons[label], spacing_mm, hu_min=hu_min, hu_max=hu_max, caption=caption,
            difference_hu=display.difference_hu,
        )  # fmt: skip
        with complete_or_absent(path.with_name(f"{name}_picture.png")) as unfinished:
            Image.fromarray(picture).save(unfinished)
    if len(recons) > 1:
        still = render_comparison(
            image, {_shortened(label): recon for label, recon in recons.items()}, spacing_mm, hu_min=hu_min,
            hu_max=hu_max, difference_hu=display.difference_hu, caption=name,
        )  # fmt: skip
        with complete_or_absent(first.with_name(f"{name}_comparison.png")) as unfinished:
            Image.fromarray(still).save(unfinished)
    titles = [f"{n}: {_shortened(label)}" for n, label in enumerate(recons, start=1)]
    shown = dict(zip(titles if len(titles) > 1 else ["Reconstruction"], recons.values(), strict=True))
    for axis in axes:
        path = first.with_name(f"{name}_{axis}.mp4")
        write_comparison_video(
            path, image, shown, spacing_mm, PLANES[axis], fps, display, video_notes(name, figures)
        )
    return CaseFigures(name, figures)


def figures_table(cases: Sequence[CaseFigures], hu_min: float, hu_max: float) -> str:
    """Returns the figures of all cases and their mean as text; two checkpoints as first / second.

    Args:
        cases: from `report_case`, at least one, all with the same checkpoints.
        hu_min: lower end of the HU window of the figures.
        hu_max: upper end.
    """
    labels = list(cases[0].figures)
    rows = [(printable(case.name), [case.figures[label] for label in labels]) for case in cases]
    if len(cases) > 1:
        rows.append(("mean", [_mean([case.figures[label] for case in cases]) for label in labels]))
    lines = [["case", *COLUMNS]]
    lines += [[name, *(_cell(per_checkpoint, column) for column in COLUMNS)] for name, per_checkpoint in rows]
    widths = [max(len(line[n]) for line in lines) for n in range(len(lines[0]))]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    head = [
        f"HU window {hu_min:g} to {hu_max:g}, data range {hu_max - hu_min:g} HU for PSNR and SSIM; "
        "SSIM: 2D per axial slice, 7 x 7",
        "checkpoint: " + ", ".join(labels) + (" (first / second)" if len(labels) > 1 else ""),
    ]
    return "\n".join(head + table)


def _mean(figures: Sequence[Figures]) -> Figures:
    numbers = [one._asdict() for one in figures]
    means = {name: sum(number[name] for number in numbers) / len(numbers) for name in Figures._fields}
    return Figures(**means | {"n_voxels": sum(one.n_voxels for one in figures)})


def _record(
    image_path: Path,
    recon_paths: Mapping[str, Path],
    figures: Mapping[str, Figures],
    hu_min: float,
    hu_max: float,
) -> dict[str, Any]:
    """Returns the content of the figures file: names without paths of this machine, finite numbers only."""
    folder = next(iter(recon_paths.values())).parent
    return {
        "image": image_path.name,
        "hu_window": [hu_min, hu_max],
        "data_range_hu": hu_max - hu_min,
        "ssim": "2D per axial slice, 7 x 7 uniform window, mean over slices",
        "reconstructions": [
            {"checkpoint": label, "file": os.path.relpath(path, folder)} | _finite(figures[label])
            for label, path in recon_paths.items()
        ],
        "versions": {package: version(package) for package in ("monai", "torch", "numpy", "nibabel")},
    }


def _finite(figures: Figures) -> dict[str, Any]:
    numbers = figures._asdict()
    values = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
    odd = [f"{name} is {value}" for name, value in numbers.items() if values[name] is None]
    return values | ({"note": ", ".join(odd)} if odd else {})


def video_notes(name: str, figures: Mapping[str, Figures]) -> list[str]:
    """Returns lines for a video: the name of the volume, and its figures, of two as first / second."""
    notes = [_shortened(name), *(["Whole volume, 1 / 2:"] if len(figures) > 1 else [])]
    for column in COLUMNS:
        label, *unit = column.split()
        notes.append(" ".join([label, _cell(figures.values(), column), *unit]))
    return notes


def _cell(figures: Iterable[Figures], column: str) -> str:
    name, form = COLUMNS[column]
    return " / ".join(format(getattr(f, name), form) for f in figures)


def _shortened(label: str) -> str:
    """Shortens text to fit over a panel; the end of a path says most, so it stays."""
    return label if len(label) <= LONGEST_TITLE else "\N{HORIZONTAL ELLIPSIS}" + label[1 - LONGEST_TITLE :]
