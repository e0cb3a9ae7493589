"""The report of an evaluation: one HTML file that opens anywhere, without network and without scripts."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bundle.evaluation.emboli import CONTRASTS, SIZES_MM
from bundle.evaluation.readings import PLACES, kind_name
from bundle.evaluation.volume import REGIONS, WHOLE, Row
from bundle.run.atomic import write_text
from bundle.run.files import open_regular

MAX_PICTURES = 12
DISCLAIMER = (
    "Research software, not a medical device. Nothing here may be used for diagnosis. A network that was "
    "trained with discriminators can draw structures that are not in the scan, an embolus among them, and "
    "can wipe out real ones; the figures say how often that was seen here, not that it cannot happen."
)
MEANING = {
    "psnr": "dB over all voxels, data range = window; says little about emboli: wiping them out raises it",
    "ssim_2d": "7 x 7 per axial slice, after shifting to 0..range",
    "ssim_3d": "7 x 7 x 7, after shifting to 0..range",
    "ms_ssim_2d": "five scales, axial slices",
    "lpips": "perceptual distance of axial slices; lower is closer",
    "mae_hu": "mean absolute error",
    "bias_hu": "mean of reconstruction less original",
    "rmse_hu": "root mean squared error",
    "nps_ratio_low": "noise power in blood, reconstruction over original, lowest third of frequencies",
    "nps_ratio_middle": "the same, middle third",
    "nps_ratio_high": "the same, highest third",
    "noise_sd_ratio": "standard deviation of noise in blood, reconstruction over original; 1 is right",
    "gradient_ratio": "mean slope in the body, reconstruction over original; below 1 is smoother",
    "edge_width_mm": "10 to 90 % rise across the lung's wall in the reconstruction",
    "edge_width_original_mm": "the same in the original",
    "seam_score": "jumps where tiles meet over jumps nearby, relative to the original; 1 is none",
    "grid": "power at periods of 2 and 4 voxels, over power nearby; 1 is none",
    "false_emboli": "dark spots in vessels that the original does not have",
    "code_usage": "share of the codebook that a volume uses",
    "code_perplexity": "codes that would give the same entropy if equally frequent",
    "bits_per_voxel": "of the file of codes, entropy coded",
    "bits_per_voxel_nominal": "log2 K / stride^3",
    "clot_contrast": "share of an inserted clot's contrast that is kept",
    "clot_contrast_lowest_tenth": "the same, tenth percentile over sites",
    "clot_loc_mm": "how far a clot was moved",
    "clot_auc_npw_original": "area under the ROC curve of a fixed template observer, in the original",
    "clot_auc_npw": "the same in the reconstruction",
    "clot_auc_npw_change": "paired change of it",
    "clot_auc_cho_original": "area under the curve of a trained channelized Hotelling observer, original",
    "clot_auc_cho": "the same in the reconstruction",
    "clot_auc_cho_change": "paired change of it",
}
PAGE = Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title>
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1150px; padding: 0 1em; }
table { border-collapse: collapse; margin: .6em 0 1.6em; }
td, th { border: 1px solid #ccc; padding: .25em .6em; text-align: left; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.passed { background: #d9f0dd; } .failed { background: #f8d7d3; } .unknown { background: #eee; }
.notice { border-left: 5px solid #c60; background: #fff4e5; padding: .6em 1em; }
img { max-width: 100%; } figure { margin: 1em 0; } small { color: #555; }
</style></head><body>
$body
</body></html>
""")


def write_report(output_dir: Path, summary: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Writes `report.html` from the summary, the rows and the pictures in the output folder."""
    page = PAGE.substitute(
        title="Evaluation of CT reconstructions", body="\n".join(_body(output_dir, summary, rows))
    )
    write_text(output_dir / "report.html", page)


def html_table(head: Sequence[str], lines: Iterable[Sequence[Any]], classes: Sequence[str] = ()) -> str:
    """A table whose cells are escaped; numbers are set to the right."""
    cells = "".join(f"<th>{escape(str(name))}</th>" for name in head)
    body = []
    for n, line in enumerate(lines):
        kind = f' class="{classes[n]}"' if n < len(classes) else ""
        body.append(f"<tr{kind}>{''.join(_cell(value) for value in line)}</tr>")
    return f"<table><tr>{cells}</tr>{''.join(body)}</table>"


def html_picture(png: bytes, caption: str) -> str:
    """A picture inside the page."""
    data = base64.b64encode(png).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def png_of(figure: Figure) -> bytes:
    """A matplotlib figure as PNG."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def spoken(value: Any, low: Any = None, high: Any = None) -> str:
    """A number of a summary for people, with its interval if there is one."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "\N{EN DASH}"
    text = value if isinstance(value, str) else f"{value:.4g}"
    bounded = [bound for bound in (low, high) if bound is not None and not math.isnan(bound)]
    return f"{text} ({bounded[0]:.4g} to {bounded[1]:.4g})" if len(bounded) == 2 else text


def _body(output_dir: Path, summary: Mapping[str, Any], rows: Sequence[Row]) -> Iterable[str]:
    about, counts = summary["about"], summary["counts"]
    yield "<h1>Evaluation of CT reconstructions</h1>"
    yield f'<p class="notice">{escape(DISCLAIMER)}</p>'
    if about.get("scored_although_trained_on"):
        names = escape(", ".join(about["scored_although_trained_on"]))
        yield f'<p class="notice">The checkpoint was trained on these volumes or patients: {names}.</p>'
    told = ", ".join(f"{name}: {n}" for name, n in counts.items()).replace("_", " ")
    yield f"<p>{escape(told)}</p>"
    (low, high), backbone = about["hu_window"], escape(str(about["lpips_backbone"]))
    yield f"<p>HU window of all figures: {low:g} to {high:g}. LPIPS backbone: {backbone}.</p>"
    for method, bars in summary["bars"].items():
        yield f"<h2>{escape(method)}: bars</h2>{_bars(bars)}"
        figures = summary["figures"][method]
        yield f"<h2>{escape(method)}: whole volumes</h2>{_figures(figures, [WHOLE])}"
        yield f"<h2>{escape(method)}: tissues</h2>{_figures(figures, list(REGIONS))}"
        yield f"<h2>{escape(method)}: inserted emboli</h2>{_clots(figures)}"
    yield f"<h2>Volumes</h2>{_volumes(rows)}"
    yield _listed("Refused", [f"{one['volume']}: {one['reason']}" for one in summary["refused"]])
    yield _listed("Warnings", summary["warnings"])
    yield from _pictures(output_dir)
    yield "<h2>What the figures mean</h2>" + html_table(("figure", "meaning"), MEANING.items())


def _bars(bars: Sequence[Mapping[str, Any]]) -> str:
    words = {True: "passed", False: "failed", None: "unknown"}
    verdict = {True: "passed", False: "not passed", None: "not measured"}
    lines = [
        (bar["bar"], bar["metric"], bar["rule"], spoken(bar["value"]), verdict[bar["passed"]]) for bar in bars
    ]
    return html_table(
        ("bar", "figure", "rule", "value", "verdict"), lines, [words[bar["passed"]] for bar in bars]
    )


def _figures(figures: Mapping[str, Any], regions: Sequence[str]) -> str:
    lines = [
        (region, metric, spoken(one["mean"], one["low"], one["high"]), one["n_patients"], one["n_volumes"])
        for region in regions
        for metric, one in figures.get(region, {}).items()
    ]
    return html_table(
        ("region", "figure", "mean (95 % interval over patients)", "patients", "volumes"), lines
    )


def _clots(figures: Mapping[str, Any]) -> str:
    metrics = (
        "clot_contrast clot_contrast_lowest_tenth clot_loc_mm clot_auc_npw_original clot_auc_npw "
        "clot_auc_npw_change clot_auc_cho_change"
    ).split()
    lines = []
    for size_mm in SIZES_MM:
        for contrast in CONTRASTS:
            for place in PLACES:
                cells = figures.get(kind_name(size_mm, contrast, place), {})
                if any(cells.get(metric, {}).get("mean") is not None for metric in metrics):
                    values = [cells.get(metric, {}) for metric in metrics]
                    spoken_values = [spoken(v.get("mean"), v.get("low"), v.get("high")) for v in values]
                    lines.append((f"{size_mm} mm", f"{contrast:.0%}", place, *spoken_values))
    if not lines:
        return "<p>No kind of embolus had enough sites.</p>"
    return html_table(("size", "contrast", "place", *metrics), lines)


def _volumes(rows: Sequence[Row]) -> str:
    shown = ("psnr", "ssim_2d", "lpips", "gradient_ratio", "noise_sd_ratio", "false_emboli")
    of: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in rows:
        if row.metric in shown:
            of.setdefault((row.volume, row.patient, row.method), {})[row.metric] = row.value
    lines = [(*key, *(spoken(values.get(metric)) for metric in shown)) for key, values in of.items()]
    return html_table(("volume", "patient", "method", *shown), lines)


def _listed(title: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    return f"<h2>{title}: {len(lines)}</h2><ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _pictures(output_dir: Path) -> Iterable[str]:
    curves = [(path.stem, np.load(path)) for path in sorted((output_dir / "kept").glob("*.npz"))]
    curves = [(stem, kept) for stem, kept in curves if len(kept["frequency_per_mm"])]
    if curves:
        yield "<h2>Noise</h2>"
        yield html_picture(png_of(noise_figure(curves[:MAX_PICTURES])), "Noise power in blood, by frequency")
    pictures = sorted((output_dir / "pictures").glob("*.png"))[:MAX_PICTURES]
    if pictures:
        yield "<h2>Pictures</h2>"
    for path in pictures:
        with open_regular(path) as file:
            yield html_picture(file.read(), path.stem)


def noise_figure(curves: Sequence[tuple[str, Mapping[str, np.ndarray]]]) -> Figure:
    """Noise power spectra, original drawn through, reconstruction dashed; one colour per volume."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for n, (name, kept) in enumerate(curves):
        for part, style in (("noise_original", "-"), ("noise_recon", "--")):
            label = f"{name}, {part.removeprefix('noise_')}"
            axes.plot(
                kept["frequency_per_mm"], np.maximum(kept[part], 1e-3), style, color=f"C{n % 10}", label=label
            )
    axes.set(xlabel="cycles per mm", ylabel="HU\N{SUPERSCRIPT TWO} mm\N{SUPERSCRIPT TWO}", yscale="log")
    axes.legend(fontsize=7)
    return figure


def _cell(value: Any) -> str:
    is_number = isinstance(value, int | float) or (
        isinstance(value, str) and value[:1] in "\N{EN DASH}-+.0123456789" and len(value) < 40
    )
    text = spoken(value) if isinstance(value, float) else str(value)
    kind = ' class="number"' if is_number else ""
    return f"<td{kind}>{escape(text)}</td>"
