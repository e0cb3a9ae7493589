"""Decides whether one way of training is better than another, from folders of configs/evaluate.yaml.

    python -m scripts.compare --base DIR... --other DIR... [--control DIR...] --output_dir OUT

Each option takes one folder per training seed, in the same order. `--control` is the base after as many
further iterations without discriminators; `--other` is compared with it, or with `--base` if there is none.
Writes compare.json and compare.html; see docs/evaluation.md for the rule.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:
    # Started as a file, Python looks beside it first: a scripts/inspect.py would hide the standard module.
    sys.path.pop(0)
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image

from bundle.data.volumes.formats import VolumeError
from bundle.data.volumes.reading import RASVolume, read_ras
from bundle.drawing.planes import (
    PLANES,
    WINDOWS,
    Row,
    Sheet,
    cut,
    difference_panel,
    grey_panel,
    mark,
    panel_size,
)
from bundle.emboli.inserted import CONTRASTS, SIZES_MM
from bundle.emboli.readings import PLACES, kind_name
from bundle.reports.arm_figures import noise_spectra, paired_dots, rates
from bundle.reports.arms import Arms, likeness, read_evaluation, shared_clots, shared_volumes
from bundle.reports.clot_sheet import clot_sheet
from bundle.reports.comparison import PRIMARIES, Verdict, arms_differ, compare, describe_changes
from bundle.reports.html import DISCLAIMER, PAGE, Cell, html_picture, html_table, number, paragraph, png_of
from bundle.reports.rows import WHOLE
from bundle.reports.wording import DASH, spoken, word_for
from bundle.run.atomic import write_text
from bundle.run.console import CommandParser, tell
from bundle.run.names import printable
from bundle.run.record import run_script

ARMS = {
    "base": "the base",
    "control": "the base trained on without discriminators (control)",
    "other": "The base trained on with discriminators (other)",
}
RULE = (
    "Patients are the units. The tests run in a fixed order, each two-sided at 0.05, and end at the first "
    "that fails. Better means: at least 6 patients, emboli not worse, and sharpness or texture better in all "
    "training seeds. Detectable is the smallest difference that this many patients would show four times in "
    "five."
)
PARTS = tuple(f", {place}" for place in PLACES if place != "all")
REGION_NAMES = {WHOLE: ""} | {
    kind_name(size, contrast, "all"): f"emboli of {size} mm, {100 * contrast:g} % of a clot's contrast"
    for size in SIZES_MM
    for contrast in CONTRASTS
}
"""Ends of the names of emboli in some of the vessels; `metrics.csv` holds them."""
DOUBT = "The arms may differ in more than their discriminators:"
AIMS = {"not worse": "not worse", "better": "better", "not inferior": "not 0.5 dB worse"}
KINDS = {"passed": "passed", "better": "passed", "worse": "failed", "failed": "failed"}
CAPTIONS = {
    "Noise in blood": "Mean over volumes; an arm should follow the original",
    "Rate and distortion": "Mean over volumes; up and to the left is better",
}
DIFFERENCE_HU = 200.0
PANEL_PX = 300
FIXED_SLICE_SEED = 0


class CompareError(ValueError):
    """Folders that cannot be compared; the message names them."""


class Shown(NamedTuple):
    """An axial slice that is drawn for all arms, and why."""

    why: str
    volume: str
    z: int


def main(arguments: Sequence[str] | None = None) -> Verdict:
    """Runs the command line of this module; returns the verdict.

    Raises:
        CompareError: if folders do not belong together.
        TableError: if a folder holds no evaluation.
        KeptError: if curves or pictures of one are damaged.
    """
    given = _parse(arguments)
    arms = {name: getattr(given, name) for name in ("base", "control", "other") if getattr(given, name)}
    read = {name: [read_evaluation(folder) for folder in folders] for name, folders in arms.items()}
    _check(read)
    doubts = _check_training(read, given.allow_unlike)
    reference = "control" if "control" in read else "base"
    verdict = compare(*([one.judged for one in read[name]] for name in (reference, "other")))
    content = {
        "compared": f"other with {reference}",
        "folders": _names(read),
        "doubts": doubts,
    } | verdict.as_dict()
    body = "\n".join(_page(read, reference, verdict, doubts))
    given.output_dir.mkdir(parents=True, exist_ok=True)
    write_text(given.output_dir / "compare.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    write_text(given.output_dir / "compare.html", PAGE.substitute(title="Comparison", body=body))
    for doubt in doubts:
        tell(f"warning: {doubt}", file=sys.stderr)
    tell(f"other against {reference}: {verdict.verdict} ({verdict.reason})")
    tell(f"figures and pictures: {given.output_dir / 'compare.html'}")
    return verdict


def _check(read: Arms) -> None:
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


def _check_training(read: Arms, allow_unlike: bool) -> list[str]:
    """Returns why the arms may differ in more than their discriminators; refuses arms that do differ."""
    found = likeness(read)
    if found.faults and not allow_unlike:
        more = f" (and {len(found.faults) - 1} more)" if len(found.faults) > 1 else ""
        raise CompareError(
            f"{found.faults[0]}{more}; name arms of one base, data order and seed, or compare them all the "
            "same with --allow_unlike"
        )
    return found.faults + found.unknown


def _names(read: Arms) -> dict[str, list[str]]:
    return {name: [printable(one.folder.name) for one in arm] for name, arm in read.items()}


def _page(read: Arms, reference: str, verdict: Verdict, doubts: Sequence[str]) -> Iterator[str]:
    yield "<h1>Comparison of two ways to train</h1>"
    yield paragraph(DISCLAIMER, "notice")
    yield paragraph(f"{ARMS['other']}, compared with {ARMS[reference]}: {verdict.verdict}.", "verdict")
    yield paragraph(f"Why: {verdict.reason}.")
    if doubts:
        yield paragraph(f"{DOUBT} {'; '.join(doubts)}.", "notice")
    yield paragraph(RULE)
    yield "<h2>Tests, in their fixed order</h2>"
    yield _tests(verdict, reference)
    yield html_picture(png_of(paired_dots(read)), "One line per patient, means over training seeds")
    yield from _lost_emboli(read, reference)
    for title, figure in (("Noise in blood", noise_spectra(read)), ("Rate and distortion", rates(read))):
        if figure is not None:
            yield f"<h2>{title}</h2>"
            yield html_picture(png_of(figure), CAPTIONS[title])
    yield from _same_slices(read)
    yield "<h2>All other figures, which decide nothing</h2>"
    yield paragraph(
        "Emboli in all vessels; metrics.csv of each folder tells central ones from those in the lungs."
    )
    yield _other_figures(read, reference)


def _same_slices(read: Arms) -> Iterator[str]:
    yield "<h2>The same slices in all arms</h2>"
    told = set()
    for shown in _chosen_slices(read):
        try:
            yield html_picture(
                _slice_picture(read, shown), f"{shown.why}: {shown.volume}, slice {shown.z + 1}"
            )
        except (VolumeError, CompareError, OSError) as error:
            reason = f"{shown.volume} is not drawn: {printable(str(error))}"
            if reason not in told:
                yield paragraph(reason, "notice")
            told.add(reason)


def _tests(verdict: Verdict, reference: str) -> str:
    yes = {True: "yes", False: "no"}
    heads = [number(name) for name in (reference, "other", "better by (95 % interval)", "p")]
    heads += [number(name) for name in ("patients better / worse / all", "detectable")]
    lines = []
    for test in verdict.tests:
        value, low, high = test.difference
        told = spoken("", test.reference), spoken("", test.other), spoken("", value, low, high)
        patients = f"{test.n_better} / {test.n_worse} / {test.n_patients}"
        cells = [*told, spoken("", test.p), patients, spoken("", test.detectable)]
        outcome = test.outcome if test.reached else f"{test.outcome}, not reached"
        kind = KINDS.get(test.outcome, "unknown") if test.reached else "unknown"
        lines.append(
            (
                test.name,
                AIMS[test.aim],
                *map(number, cells),
                yes[test.seeds_agree] if test.n_patients else DASH,
                Cell(outcome, kind=kind),
            )
        )
    return html_table(("Figure", "Must be", *heads, "Seeds agree", "Outcome"), lines)


def _other_figures(read: Arms, reference: str) -> str:
    decided = {key for primary in PRIMARIES for key in primary.keys}
    changes = describe_changes(*([one.judged for one in read[name]] for name in (reference, "other")))
    lines = [
        (
            Cell(word_for(change.metric).label, REGION_NAMES.get(change.region, change.region)),
            word_for(change.metric).good,
            number(spoken(change.metric, change.reference, with_unit=False)),
            number(spoken(change.metric, change.other, with_unit=False)),
            number(spoken(change.metric, *change.difference, signed=True)),
            change.n_patients,
        )
        for change in changes
        if (change.region, change.metric) not in decided
        and not change.metric.endswith("_original")
        and not change.region.endswith(PARTS)
    ]
    heads = [number(name) for name in (reference, "other", "other less " + reference, "patients")]
    return html_table(("Figure", "Good value", *heads), lines)


def _lost_emboli(read: Arms, reference: str) -> Iterator[str]:
    """Shows magnified emboli in all arms: those that the other arm loses, a typical one, and the best."""
    clots = sorted(shared_clots(read), key=lambda one: one.contrast["other"])
    if not clots:
        return
    picked = {
        "other keeps least": clots[0],
        f"largest loss against {reference}": min(
            clots, key=lambda one: one.contrast["other"] - one.contrast[reference]
        ),
        "median": clots[len(clots) // 2],
        "other keeps most": clots[-1],
    }
    titles = []
    for why, one in picked.items():
        shares = [spoken("clot_contrast", one.contrast[name]) for name in ("other", reference)]
        titles.append(f"{why}: {shares[0]}\n{reference}: {shares[1]}; {one.volume:.24}")
    patches = {
        name: np.stack([arm[0].kept(one.volume)["clot_recon"][one.row[name]] for one in picked.values()])
        for name, arm in read.items()
    }
    originals = [
        read["other"][0].kept(one.volume)["clot_original"][one.row["other"]] for one in picked.values()
    ]
    yield "<h2>Emboli of 4 mm that were put into the scans</h2>"
    yield html_picture(
        clot_sheet(titles, np.stack(originals), patches), "The largest loss of an embolus, and others"
    )


def _chosen_slices(read: Arms) -> Iterator[Shown]:
    """Chooses the worst and the median slice of the other arm, and one fixed by a seed."""
    first = read["other"][0]
    errors = []
    for name in shared_volumes(read):
        rmse_hu = first.kept(name).get("slice_rmse_hu", ())
        errors += [(float(rmse), name, z) for z, rmse in enumerate(rmse_hu)]
    if not errors:
        return
    fixed = errors[int(np.random.default_rng(FIXED_SLICE_SEED).integers(len(errors)))]
    ordered = sorted(errors)
    yield Shown("Worst slice of the other arm", *ordered[-1][1:])
    yield Shown("Median slice of the other arm", *ordered[len(ordered) // 2][1:])
    yield Shown("Slice fixed by a seed", *fixed[1:])


def _slice_picture(read: Arms, shown: Shown) -> bytes:
    plane = PLANES["axial"]
    paths = {name: arm[0].volumes[shown.volume] for name, arm in read.items()}
    without = [name for name, files in paths.items() if not files["reconstruction"]]
    if without:
        raise CompareError(
            f"no reconstruction was kept for {', '.join(without)}; evaluate with --write_volumes true"
        )
    original = read_ras(Path(next(iter(paths.values()))["original"]))
    shape, spacing = original.voxels.shape, original.spacing_mm
    if shown.z >= shape[2]:
        raise CompareError(f"it has {shape[2]} slices now, not slice {shown.z + 1}; evaluate again")
    size = panel_size(shape, spacing, plane, PANEL_PX / max(shape[0] * spacing[0], shape[1] * spacing[1]))
    titles = [str(window).replace(": ", "\n") for window in WINDOWS.values()]
    titles.append("Difference\nreconstruction \N{MINUS SIGN} original")
    labels = ["original", *paths]
    rows = [Row(label, size[1], () if n else titles) for n, label in enumerate(labels)]
    sheet = Sheet(rows, n_columns=len(titles), column_width=size[0])
    real = _axial(original, shown.z)
    for n, label in enumerate(labels):
        fake = real
        if n:
            recon = read_ras(Path(paths[label]["reconstruction"]))
            if recon.voxels.shape != shape:
                raise CompareError(f"its reconstruction of {label} has another shape now; evaluate again")
            fake = _axial(recon, shown.z)
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
    parser = CommandParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    several: dict[str, Any] = {"type": Path, "nargs": "+", "metavar": "DIR"}
    add("--base", required=True, help="evaluations of the base checkpoints, one per training seed", **several)
    add("--other", required=True, help="of base trained on, with discriminators", **several)
    add("--control", help="of base trained on for as long, without discriminators", **several)
    add(
        "--allow_unlike",
        action="store_true",
        help="compare arms of different bases, data or seeds all the same, and say so on the page",
    )
    add("--output_dir", type=Path, required=True, help="folder of compare.html and compare.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_script(main)
