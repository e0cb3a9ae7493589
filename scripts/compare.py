"""Says by rule whether one way of training is better than another, from folders of configs/evaluate.yaml.

    python -m scripts.compare --base DIR... --other DIR... [--control DIR...] --output_dir OUT

Each option takes one folder per training seed, in the same order. `--control` is the base trained on for as
long without discriminators; `--other` is compared with it, or with `--base` where there is none. Writes
compare.json and compare.html; see docs/evaluation.md for the rule.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:
    # Started as a file, Python looks beside it first: a scripts/inspect.py would hide the standard module.
    sys.path.pop(0)
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from bundle.data.volumes.formats import VolumeError
from bundle.drawing.planes import PLANES, WINDOWS, Sheet, cut, difference_panel, grey_panel, mark, panel_size
from bundle.drawing.planes import Row as SheetRow
from bundle.evaluation.cases import RASVolume, read_ras
from bundle.evaluation.comparison import PRIMARIES, Verdict, arms_differ, compare
from bundle.evaluation.readings import kind_name
from bundle.evaluation.report import DISCLAIMER, PAGE, html_picture, html_table, png_of, spoken
from bundle.evaluation.tables import EMBOLI, METRICS, TableError, read_emboli_table, read_metrics
from bundle.evaluation.volume import MODEL, PAIRS, WHOLE
from bundle.evaluation.volume import Row as Figured
from bundle.run.atomic import write_text
from bundle.run.console import tell
from bundle.run.names import printable
from bundle.run.record import run_script

DIFFERENCE_HU = 200.0
PANEL_PX = 300
FIXED_SLICE_SEED = 0


class CompareError(ValueError):
    """Folders that cannot be compared; the message names them."""


class Evaluated(NamedTuple):
    """One folder of configs/evaluate.yaml."""

    folder: Path
    rows: list[Figured]
    about: dict[str, Any]
    volumes: dict[str, dict[str, str]]

    @property
    def judged(self) -> list[Figured]:
        """The rows without those of codecs."""
        return [row for row in self.rows if row.method in (MODEL, PAIRS)]


class Shown(NamedTuple):
    """An axial slice that is drawn for all arms, and why."""

    why: str
    volume: str
    z: int


def main(arguments: Sequence[str] | None = None) -> Verdict:
    """Command line of this module; returns the verdict.

    Raises:
        CompareError: if folders do not belong together.
        TableError: if a folder holds no evaluation.
    """
    given = _parse(arguments)
    arms = {name: getattr(given, name) for name in ("base", "control", "other") if getattr(given, name)}
    read = {name: [_read(folder) for folder in folders] for name, folders in arms.items()}
    _check(read)
    reference = "control" if "control" in read else "base"
    verdict = compare(*([one.judged for one in read[name]] for name in (reference, "other")))
    content = {"compared": f"other with {reference}", "folders": _names(read)} | verdict.as_dict()
    given.output_dir.mkdir(parents=True, exist_ok=True)
    write_text(given.output_dir / "compare.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    body = "\n".join(_page(read, reference, verdict))
    write_text(given.output_dir / "compare.html", PAGE.substitute(title="Comparison", body=body))
    tell(f"other against {reference}: {verdict.verdict} ({verdict.reason})")
    tell(f"figures and pictures: {given.output_dir / 'compare.html'}")
    return verdict


def _read(folder: Path) -> Evaluated:
    rows = read_metrics(folder / METRICS)
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        volumes = json.loads((folder / "volumes.json").read_text(encoding="utf-8"))
        return Evaluated(folder, rows, dict(summary["about"]), dict(volumes))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TableError(
            f"{folder}: its summary.json or volumes.json cannot be read ({error!r:.200}); evaluate again"
        ) from error


def _check(read: Mapping[str, Sequence[Evaluated]]) -> None:
    numbers = {name: len(arm) for name, arm in read.items()}
    if len(set(numbers.values())) > 1:
        told = ", ".join(f"{number} for --{name}" for name, number in numbers.items())
        raise CompareError(
            f"each arm must have one folder per training seed, got {told}; give as many for each"
        )
    every = [one for arm in read.values() for one in arm]
    difference = arms_differ({str(one.folder): one.about for one in every})
    if difference:
        raise CompareError(difference)
    shared = set.intersection(*({row.patient for row in one.rows} for one in every))
    if not shared:
        raise CompareError("the folders must share patients, got none; evaluate one data set in all of them")


def _names(read: Mapping[str, Sequence[Evaluated]]) -> dict[str, list[str]]:
    return {name: [printable(one.folder.name) for one in arm] for name, arm in read.items()}


def _page(read: Mapping[str, Sequence[Evaluated]], reference: str, verdict: Verdict) -> Iterator[str]:
    yield "<h1>Comparison of ways to train</h1>"
    yield f'<p class="notice">{DISCLAIMER}</p>'
    yes = {True: "yes", False: "no"}
    yield f"<h2>Other against {reference}: {verdict.verdict}</h2>"
    yield html_table(("verdict", "reason"), [(verdict.verdict, verdict.reason)])
    yield html_table(
        (
            *("figure, in the order of the tests", "aim", reference, "other", "difference (95 % interval)"),
            *("p", "better", "worse", "patients", "seeds agree", "detectable", "in order", "outcome"),
        ),
        [
            (
                test.name, test.aim, spoken(test.reference), spoken(test.other), spoken(*test.difference),
                spoken(test.p), test.n_better, test.n_worse, test.n_patients, yes[test.seeds_agree],
                spoken(test.detectable), yes[test.reached], test.outcome,
            )
            for test in verdict.tests
        ],
    )  # fmt: skip
    yield "<p>Higher scores are better: LPIPS and false emboli count negative, ratios by distance from 1.</p>"
    yield html_picture(png_of(_paired_dots(read)), "One line per patient, mean over training seeds")
    for title, figure in (("Noise in blood", _noise(read)), ("Rate and distortion", _rates(read))):
        if figure is not None:
            yield html_picture(png_of(figure), title)
    for shown in _chosen_slices(read):
        try:
            yield html_picture(
                _slice_picture(read, shown), f"{shown.why}: {shown.volume}, slice {shown.z + 1}"
            )
        except (VolumeError, OSError) as error:
            yield html_table(("not drawn",), [(f"{shown.volume}: {error}",)])


def _paired_dots(read: Mapping[str, Sequence[Evaluated]]) -> Figure:
    figure = Figure(figsize=(13, 3.2), layout="constrained")
    for n, primary in enumerate(PRIMARIES):
        axes = figure.add_subplot(1, len(PRIMARIES), n + 1)
        values: dict[str, list[float]] = {}
        for arm in read.values():
            of_arm: dict[str, list[float]] = {}
            for row in (row for one in arm for row in one.judged):
                if (row.region, row.metric) in primary.keys and np.isfinite(row.value):
                    of_arm.setdefault(row.patient, []).append(row.value)
            for patient, some in of_arm.items():
                values.setdefault(patient, []).append(float(np.mean(some)))
        for some in values.values():
            if len(some) == len(read):
                axes.plot(range(len(some)), some, "o-", color="0.4", alpha=0.6)
        axes.set_xticks(range(len(read)), list(read))
        axes.set_title(primary.name, fontsize=8)
    return figure


def _noise(read: Mapping[str, Sequence[Evaluated]]) -> Figure | None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    is_original_drawn = False
    for name, arm in read.items():
        curves = [np.load(path) for one in arm for path in sorted((one.folder / "kept").glob("*.npz"))]
        curves = [kept for kept in curves if len(kept["frequency_per_mm"])]
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
        xlabel="cycles per mm",
        ylabel="noise power",
        yscale="log",
    )
    axes.legend()
    return figure if is_original_drawn else None


def _rates(read: Mapping[str, Sequence[Evaluated]]) -> Figure | None:
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
    axes.legend()
    return figure


def _chosen_slices(read: Mapping[str, Sequence[Evaluated]]) -> Iterator[Shown]:
    """Worst and median slice of the other arm, one fixed by a seed, and the largest loss of a clot."""
    first = read["other"][0]
    names = [name for name in first.volumes if all(name in arm[0].volumes for arm in read.values())]
    errors = []
    for name in names:
        path = first.folder / "kept" / f"{first.volumes[name]['stem']}.npz"
        if path.is_file():
            errors += [(float(rmse), name, z) for z, rmse in enumerate(np.load(path)["slice_rmse_hu"])]
    if not errors:
        return
    fixed = errors[int(np.random.default_rng(FIXED_SLICE_SEED).integers(len(errors)))]
    ordered = sorted(errors)
    yield Shown("worst slice of the other arm", *ordered[-1][1:])
    yield Shown("median slice of the other arm", *ordered[len(ordered) // 2][1:])
    yield Shown("slice fixed by a seed", *fixed[1:])
    sites = [
        site for site in read_emboli_table(first.folder / EMBOLI)
        if site["volume"] in names and site["size_mm"] == 4 and site["contrast"] == 1
    ]  # fmt: skip
    if sites:
        lost = min(sites, key=lambda site: site["clot_contrast"])
        why = f"largest loss of a clot ({kind_name(4, 1.0, 'all')}), drawn without it"
        yield Shown(why, lost["volume"], round(lost["z"]))


def _slice_picture(read: Mapping[str, Sequence[Evaluated]], shown: Shown) -> bytes:
    plane = PLANES["axial"]
    paths = {name: arm[0].volumes[shown.volume] for name, arm in read.items()}
    original = read_ras(Path(next(iter(paths.values()))["original"]))
    shape, spacing = original.voxels.shape, original.spacing_mm
    size = panel_size(shape, spacing, plane, PANEL_PX / max(shape[0] * spacing[0], shape[1] * spacing[1]))
    titles = [str(window) for window in WINDOWS.values()] + ["Difference to original"]
    labels = ["original", *paths]
    rows = [SheetRow(label, size[1], () if n else titles) for n, label in enumerate(labels)]
    sheet = Sheet(rows, n_columns=len(titles), column_width=size[0])
    real = _axial(original, shown.z)
    for n, label in enumerate(labels):
        fake = real if n == 0 else _axial(read_ras(Path(paths[label]["reconstruction"])), shown.z)
        for column, window in enumerate(WINDOWS.values()):
            sheet.place(mark(grey_panel(fake, size, window), plane), n, column)
        sheet.place(mark(difference_panel(fake - real, size, DIFFERENCE_HU), plane), n, len(WINDOWS))
    sheet.colour_bar(DIFFERENCE_HU, row=0)
    buffer = io.BytesIO()
    Image.fromarray(sheet.to_array()).save(buffer, format="png")
    return buffer.getvalue()


def _axial(volume: RASVolume, z: int) -> np.ndarray:
    return cut(volume.voxels, PLANES["axial"], z, -1024, 3071)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.compare", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    several: dict[str, Any] = {"type": Path, "nargs": "+", "metavar": "DIR"}
    add("--base", required=True, help="evaluations of the base checkpoints, one per training seed", **several)
    add("--other", required=True, help="of base trained on, with discriminators", **several)
    add("--control", help="of base trained on for as long, without discriminators", **several)
    add("--output_dir", type=Path, required=True, help="folder of compare.html and compare.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_script(main)
