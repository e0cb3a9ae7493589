"""Writes the report of an evaluation: one HTML file that opens anywhere, without network or scripts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bundle.emboli.inserted import CONTRASTS, SIZES_MM
from bundle.emboli.readings import PLACES, kind_name
from bundle.reports.clot_sheet import SHOWN_SIZE_MM, clot_sheet
from bundle.reports.html import (
    DISCLAIMER,
    PAGE,
    Cell,
    bullets,
    html_picture,
    html_table,
    number,
    paragraph,
    png_of,
)
from bundle.reports.kept import read_kept
from bundle.reports.rows import REGIONS, WHOLE, Row
from bundle.reports.wording import DASH, MINUS, spoken, word_for
from bundle.run.atomic import write_text
from bundle.run.files import open_regular

MAX_PICTURES = 12
MAX_CLOT_SHEETS = 4
METHODS = {"model": "this network", "pairs": "these files"}
VERDICTS = {True: ("passed", "passed"), False: ("not passed", "failed"), None: ("not measured", "unknown")}
TISSUES = {
    "body": "whole body", "lung": "lung", "soft tissue": "soft tissue (0 to 100 HU)",
    "vessel": "vessels filled with contrast agent", "bone": "bone",
}  # fmt: skip
WHOLE_ORDER = (
    *("gradient_ratio", "noise_sd_ratio", "nps_ratio_low", "nps_ratio_middle", "nps_ratio_high"),
    *("lpips", "psnr", "ssim_2d", "ssim_3d", "ms_ssim_2d", "mae_hu", "bias_hu", "rmse_hu"),
    *("grid", "seam_score", "bits_per_voxel", "bits_per_voxel_nominal", "code_usage", "code_perplexity"),
)
LUNG_EDGE = ("edge_width_mm", "edge_width_original_mm")
CLOT_COLUMNS = (
    *("clot_contrast", "clot_contrast_lowest_tenth", "clot_loc_mm"),
    *("clot_auc_npw_original", "clot_auc_npw", "clot_auc_npw_change"),
)
Kept = Mapping[str, Mapping[str, np.ndarray]]
"""What was kept of each volume, by the volume's name."""
VOLUME_COLUMNS = ("psnr", "ssim_2d", "lpips", "gradient_ratio", "noise_sd_ratio", "false_emboli")


def write_report(
    output_dir: Path, summary: Mapping[str, Any], rows: Sequence[Row], stems: Mapping[str, str]
) -> None:
    """Writes `report.html`.

    Args:
        output_dir: folder of the evaluation, which holds pictures and what was kept.
        summary: see `summary_of`.
        rows: of `metrics.csv`.
        stems: by the name of each volume, how the names of its files begin. Files of an earlier run in the
            same folder are not shown.

    Raises:
        KeptError: if what was kept cannot be read.
    """
    kept = {name: read_kept(output_dir, stem) for name, stem in list(stems.items())[:MAX_PICTURES]}
    pictures = {name: output_dir / "pictures" / f"{stems[name]}.png" for name in kept}
    body = "\n".join(_body(summary, rows, kept, pictures))
    write_text(
        output_dir / "report.html", PAGE.substitute(title="Evaluation of CT reconstructions", body=body)
    )


def _body(
    summary: Mapping[str, Any], rows: Sequence[Row], kept: Kept, pictures: Mapping[str, Path]
) -> Iterable[str]:
    about = summary["about"]
    yield "<h1>Evaluation of CT reconstructions</h1>"
    yield paragraph(DISCLAIMER, "notice")
    if about.get("scored_although_trained_on"):
        names = ", ".join(about["scored_although_trained_on"])
        yield paragraph(f"The checkpoint was trained on these volumes or patients: {names}.", "notice")
    yield paragraph(_in_short(summary), "verdict")
    yield bullets("Refused", [f"{one['volume']}: {one['reason']}" for one in summary["refused"]])
    yield bullets("Warnings", summary["warnings"])
    yield from _limits(summary["bars"])
    yield from _emboli(summary["figures"])
    yield from _clot_sheets(kept)
    yield from _whole(summary)
    yield from _tissues(summary["figures"])
    yield from _volumes(rows)
    yield from _noise(kept)
    yield from _pictures(pictures)


def _in_short(summary: Mapping[str, Any]) -> str:
    counts, about = summary["counts"], summary["about"]
    told = f"{_many(counts['evaluated'], 'volume')} of {_many(counts['patients'], 'patient')} evaluated"
    if counts["refused"]:
        told += f", {counts['refused']} refused"
    bars = summary["bars"].get(about.get("method", "model"), [])
    if bars:
        failed = [bar["bar"] for bar in bars if bar["passed"] is False]
        unknown = [bar["bar"] for bar in bars if bar["passed"] is None]
        told += f". {len(bars) - len(failed) - len(unknown)} of {len(bars)} limits passed"
        told += f"; not passed: {'; '.join(failed)}" if failed else ""
        told += f"; not measured: {'; '.join(unknown)}" if unknown else ""
    return told + "."


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _limits(bars: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    if not bars:
        return
    yield "<h2>Limits</h2>"
    yield paragraph(
        "A reconstruction that passes all of these kept the emboli that were put into these scans, invented "
        "none in them, and shows no seams and no grid."
    )
    lines = []
    for of_bar in zip(*bars.values(), strict=True):
        cells = []
        for bar in of_bar:
            verdict, kind = VERDICTS[bar["passed"]]
            cells.append(
                Cell(spoken(bar["metric"], bar["value"], with_unit=False), verdict, f"number {kind}")
            )
        metric, rule = of_bar[0]["metric"], of_bar[0]["rule"]
        words, limit = rule.rsplit(" ", 1)
        lines.append(
            (
                Cell(of_bar[0]["bar"], word_for(metric).meaning),
                f"{words} {spoken(metric, float(limit), with_unit=False)}",
                *cells,
            )
        )
    yield html_table(("What is asked", "Limit", *_heads(bars)), lines)


def _heads(methods: Iterable[str]) -> list[Cell]:
    return [number(METHODS.get(method, method)) for method in methods]


def _emboli(of_methods: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>Emboli put into the scans</h2>"
    yield paragraph(
        "Balls of 55 HU were put into filled vessels, at the full contrast of a clot and, as a harder task, "
        "at 15 % of it. Reconstructions with and without them were compared. Brackets hold 95 % intervals "
        "over patients."
    )
    for method, figures in of_methods.items():
        lines = list(_clot_lines(figures))
        if len(of_methods) > 1:
            yield f"<h3>{METHODS.get(method, method)}</h3>"
        if not lines:
            yield paragraph("No kind of embolus had enough sites to be measured.")
            continue
        heads = [number(_head(metric)) for metric in CLOT_COLUMNS]
        yield html_table(("Diameter", "Contrast", "Vessels", number("sites"), *heads), lines)
    meanings = [f"{word_for(m).label}: {word_for(m).meaning}" for m in CLOT_COLUMNS]
    yield f"<p><small>{' '.join(meanings)}</small></p>"


def _head(metric: str) -> str:
    word = word_for(metric)
    return f"{word.label}, {word.unit}" if word.unit else word.label


def _clot_lines(figures: Mapping[str, Any]) -> Iterator[tuple]:
    places = {"all": "all", "central": "central", "lung": "inside the lungs"}
    for size_mm in SIZES_MM:
        for contrast in CONTRASTS:
            for place in PLACES:
                cells = figures.get(kind_name(size_mm, contrast, place), {})
                values = [cells.get(metric, {}) for metric in CLOT_COLUMNS]
                if all(value.get("mean") is None for value in values):
                    continue
                told = [
                    number(
                        spoken(
                            metric, value.get("mean"), value.get("low"), value.get("high"), with_unit=False
                        )
                    )
                    for metric, value in zip(CLOT_COLUMNS, values, strict=True)
                ]
                n_sites = cells["clot_contrast"].get("n", DASH)
                yield f"{size_mm} mm", f"{contrast:.0%}".replace("%", " %"), places[place], n_sites, *told


def _clot_sheets(every: Kept) -> Iterator[str]:
    """Shows the weakest, a typical and the best embolus of a volume, magnified."""
    with_emboli = [(name, kept) for name, kept in every.items() if len(kept.get("clot_contrast", ()))]
    for name, kept in with_emboli[:MAX_CLOT_SHEETS]:
        order = np.argsort(kept["clot_contrast"])
        picked = {"weakest": order[0], "tenth": order[len(order) // 10], "median": order[len(order) // 2]}
        picked["strongest"] = order[-1]
        shares = [spoken("clot_contrast", float(kept["clot_contrast"][n])) for n in picked.values()]
        titles = [f"{which}: {share} kept" for which, share in zip(picked, shares, strict=True)]
        chosen = list(picked.values())
        yield html_picture(
            clot_sheet(titles, kept["clot_original"][chosen], {"reconstruction": kept["clot_recon"][chosen]}),
            f"{name}: inserted emboli of {SHOWN_SIZE_MM} mm in the original and in the reconstruction",
        )


def _whole(summary: Mapping[str, Any]) -> Iterator[str]:
    of_methods, about = summary["figures"], summary["about"]
    low, high = about["hu_window"]
    backbone = about["lpips_backbone"]
    yield "<h2>Sharpness, noise and errors of whole volumes</h2>"
    yield paragraph(
        f"Means over patients, with 95 % intervals. All figures are taken from {_hu(low)} to {_hu(high)} HU. "
        + (
            f"LPIPS uses the {backbone} network."
            if backbone
            else "LPIPS was not measured: no weights were there."
        )
    )
    found = {name for figures in of_methods.values() for name in figures.get(WHOLE, {})}
    keys = [(WHOLE, metric) for metric in WHOLE_ORDER if metric in found]
    keys += [(WHOLE, metric) for metric in sorted(found - set(WHOLE_ORDER))]
    keys[5:5] = [("lung", metric) for metric in LUNG_EDGE]
    lines = [
        (
            Cell(word_for(metric).label, word_for(metric).meaning),
            word_for(metric).good,
            *(_mean(figures.get(region, {}).get(metric, {}), metric) for figures in of_methods.values()),
        )
        for region, metric in keys
    ]
    yield html_table(("Figure", "Good value", *_heads(of_methods)), lines)


def _hu(value: float) -> str:
    return f"{value:g}".replace("-", MINUS)


def _mean(one: Mapping[str, Any], metric: str) -> Cell:
    return number(spoken(metric, one.get("mean"), one.get("low"), one.get("high")))


def _tissues(of_methods: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>Errors by tissue</h2>"
    yield paragraph("Tissues are found in the original only.")
    metrics = ("bias_hu", "mae_hu", "rmse_hu")
    for method, figures in of_methods.items():
        if len(of_methods) > 1:
            yield f"<h3>{METHODS.get(method, method)}</h3>"
        lines = [
            (TISSUES[region], *(_mean(figures.get(region, {}).get(metric, {}), metric) for metric in metrics))
            for region in REGIONS
        ]
        yield html_table(("Tissue", *(number(word_for(metric).label) for metric in metrics)), lines)


def _volumes(rows: Sequence[Row]) -> Iterator[str]:
    of: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in rows:
        if row.metric in VOLUME_COLUMNS:
            of.setdefault((row.volume, row.patient, row.method), {})[row.metric] = row.value
    yield "<h2>Volumes</h2>"
    lines = [
        (volume, patient, METHODS.get(method, method))
        + tuple(number(spoken(metric, values.get(metric), with_unit=False)) for metric in VOLUME_COLUMNS)
        for (volume, patient, method), values in of.items()
    ]
    heads = [number(_head(metric)) for metric in VOLUME_COLUMNS]
    yield html_table(("Volume", "Patient", "Method", *heads), lines)


def _noise(every: Kept) -> Iterator[str]:
    curves = [(name, kept) for name, kept in every.items() if len(kept.get("frequency_per_mm", ()))]
    if curves:
        yield "<h2>Noise</h2>"
        caption = "Noise power in blood: coarse grain left, fine grain right; dashed should follow solid"
        yield html_picture(png_of(noise_figure(curves)), caption)


def _pictures(pictures: Mapping[str, Path]) -> Iterator[str]:
    there = {name: path for name, path in pictures.items() if path.is_file()}
    if there:
        yield "<h2>Pictures</h2>"
        yield paragraph(
            "Planes through the middle of the filled vessels. The folder viewer holds a page with all slices."
        )
    for name, path in there.items():
        with open_regular(path) as file:
            yield html_picture(file.read(), name)


def noise_figure(curves: Sequence[tuple[str, Mapping[str, np.ndarray]]]) -> Figure:
    """Draws noise power spectra, originals solid, reconstructions dashed, one colour per volume."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for n, (name, kept) in enumerate(curves):
        for part, style in (("original", "-"), ("recon", "--")):
            label = f"{name}, {'original' if part == 'original' else 'reconstruction'}"
            power = np.maximum(kept[f"noise_{part}"], 1e-3)
            axes.plot(kept["frequency_per_mm"], power, style, color=f"C{n % 10}", label=label)
    axes.set(
        xlabel="spatial frequency, cycles per mm",
        ylabel="noise power, HU\N{SUPERSCRIPT TWO} mm\N{SUPERSCRIPT TWO}",
        yscale="log",
    )
    axes.legend(fontsize=7)
    return figure
