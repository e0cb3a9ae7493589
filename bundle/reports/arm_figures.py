"""Draws the figures that show all arms of a comparison at once."""

from __future__ import annotations

import textwrap

import numpy as np
from matplotlib.figure import Figure

from bundle.reports.arms import Arms
from bundle.reports.comparison import PRIMARIES
from bundle.reports.rows import MODEL, PAIRS, WHOLE


def paired_dots(read: Arms) -> Figure:
    """Draws each deciding figure of all arms: one line per patient, means over training seeds."""
    figure = Figure(figsize=(13, 3.2), layout="constrained")
    for n, primary in enumerate(PRIMARIES):
        axes = figure.add_subplot(1, len(PRIMARIES), n + 1)
        values: dict[str, list[float]] = {}
        for arm in read.values():
            of_arm: dict[str, list[float]] = {}
            for row in (row for one in arm for row in one.judged):
                if (row.region, row.metric) in primary.keys and np.isfinite(row.value):
                    of_arm.setdefault(row.patient, []).append(primary.value(row.value))
            for patient, some in of_arm.items():
                values.setdefault(patient, []).append(float(np.mean(some)))
        for some in values.values():
            if len(some) == len(read):
                axes.plot(range(len(some)), some, "o-", color="0.4", alpha=0.6)
        axes.set_xticks(range(len(read)), list(read))
        axes.set_title(textwrap.fill(primary.name, 24), fontsize=8)
    return figure


def noise_spectra(read: Arms) -> Figure | None:
    """Draws the noise power in blood of original and arms; None where no evaluation kept it."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    is_original_drawn = False
    for name, arm in read.items():
        curves = [one.kept(volume) for one in arm for volume in one.volumes]
        curves = [kept for kept in curves if len(kept.get("frequency_per_mm", ()))]
        if not curves:
            continue
        grid = np.linspace(0, min(kept["frequency_per_mm"][-1] for kept in curves), 40)
        for part, label in (("noise_original", "original"), ("noise_recon", name)):
            if part == "noise_original" and is_original_drawn:
                continue
            power = [np.interp(grid, kept["frequency_per_mm"], kept[part]) for kept in curves]
            axes.plot(grid, np.maximum(np.mean(power, axis=0), 1e-3), label=label)
        is_original_drawn = True
    axes.set(
        xlabel="spatial frequency, cycles per mm",
        ylabel="noise power, HU\N{SUPERSCRIPT TWO} mm\N{SUPERSCRIPT TWO}",
        yscale="log",
    )
    axes.legend()
    return figure if is_original_drawn else None


def rates(read: Arms) -> Figure | None:
    """Draws PSNR over bits per voxel of arms and codecs; None where neither is known."""
    points: dict[str, dict[str, list[float]]] = {}
    for name, arm in read.items():
        for row in (row for one in arm for row in one.rows if row.region == WHOLE):
            label = name if row.method in (MODEL, PAIRS) else row.method
            if row.metric in ("psnr", "bits_per_voxel") and np.isfinite(row.value):
                points.setdefault(label, {}).setdefault(row.metric, []).append(row.value)
    points = {label: found for label, found in points.items() if len(found) == 2}
    if not points:
        return None
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for label, found in points.items():
        axes.plot(np.mean(found["bits_per_voxel"]), np.mean(found["psnr"]), "o", label=label)
    axes.set(xlabel="bits per voxel", ylabel="PSNR, dB")
    figure.legend(loc="outside right upper")  # inside it can hide a point
    return figure
