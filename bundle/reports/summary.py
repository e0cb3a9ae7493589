"""Summarises all volumes: means with intervals over patients, and which limits are passed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from bundle.emboli.readings import kind_name
from bundle.metrics.observers import bootstrap_mean
from bundle.reports.rows import WHOLE, Row


class Bar(NamedTuple):
    """A limit that a reconstruction has to keep.

    Attributes:
        title: in words.
        region: of the figure.
        metric: of the figure.
        at_least: whether the limit is the lowest value allowed, else it is the highest.
        limit: the value itself passes.
        worst: whether the worst volume is judged; else the mean over patients.
    """

    title: str
    region: str
    metric: str
    at_least: bool
    limit: float
    worst: bool = False


CLOT_4_MM, FAINT_CLOT_4_MM = kind_name(4, 1.0, "all"), kind_name(4, 0.15, "all")
BARS = (
    Bar("Contrast kept of emboli of 4 mm", CLOT_4_MM, "clot_contrast", True, 0.85),
    Bar("Contrast kept, weakest tenth of emboli of 4 mm", CLOT_4_MM, "clot_contrast_lowest_tenth", True, 0.7),
    Bar("Visibility of emboli of 4 mm, change", CLOT_4_MM, "clot_auc_npw_change", True, -0.02),
    Bar("Visibility of faint emboli of 4 mm, change", FAINT_CLOT_4_MM, "clot_auc_npw_change", True, -0.03),
    Bar("Invented emboli, worst volume", "vessel", "false_emboli", False, 0.0, worst=True),
    Bar("Grid pattern, worst volume", WHOLE, "grid", False, 1.5, worst=True),
    Bar("Seams between tiles, worst volume", WHOLE, "seam_score", False, 1.01, worst=True),
)


class Mean(NamedTuple):
    """A figure over all patients: mean, 95 % interval by bootstrap over patients, counts."""

    mean: float
    low: float
    high: float
    n_patients: int
    n_volumes: int
    n_empty: int


def means(rows: Iterable[Row]) -> dict[tuple[str, str, str], Mean]:
    """Averages each figure over patients, by method, region and metric, after a patient's volumes."""
    values: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for row in rows:
        by_patient = values.setdefault((row.method, row.region, row.metric), {})
        by_patient.setdefault(row.patient, []).append(row.value)
    return {key: _mean(by_patient) for key, by_patient in values.items()}


def _mean(by_patient: dict[str, list[float]]) -> Mean:
    known = {patient: [v for v in some if not math.isnan(v)] for patient, some in by_patient.items()}
    of_patients = np.array([float(np.mean(some)) for some in known.values() if some])
    n_volumes = sum(map(len, known.values()))
    n_empty = sum(map(len, by_patient.values())) - n_volumes
    if not len(of_patients):
        return Mean(math.nan, math.nan, math.nan, 0, 0, n_empty)
    if not np.isfinite(of_patients).all():  # PSNR of equal volumes
        return Mean(float(of_patients.mean()), math.nan, math.nan, len(of_patients), n_volumes, n_empty)
    return Mean(*bootstrap_mean(of_patients), len(of_patients), n_volumes, n_empty)


def judge_bars(rows: Sequence[Row], method: str) -> list[dict[str, Any]]:
    """Returns every limit with its value, and `passed`: true, false, or null if it was not measured."""
    told = []
    for bar in BARS:
        values = [
            row.value
            for row in rows
            if (row.method, row.region, row.metric) == (method, bar.region, bar.metric)
            and not math.isnan(row.value)
        ]
        value = math.nan
        if values:
            worst = min(values) if bar.at_least else max(values)
            over_patients = means(
                row
                for row in rows
                if (row.method, row.region, row.metric) == (method, bar.region, bar.metric)
            )
            value = worst if bar.worst else over_patients[method, bar.region, bar.metric].mean
        passed = (
            None if math.isnan(value) else bool(value >= bar.limit if bar.at_least else value <= bar.limit)
        )
        told.append(
            {
                "bar": bar.title,
                "region": bar.region,
                "metric": bar.metric,
                "rule": f"{'at least' if bar.at_least else 'at most'} {bar.limit:g}",
                "value": plain(value),
                "passed": passed,
            }
        )
    return told


def summary_of(
    rows: Sequence[Row], refused: Sequence[dict[str, str]], warnings: Sequence[str], about: dict[str, Any]
) -> dict[str, Any]:
    """Returns the content of `summary.json`."""
    methods = list(dict.fromkeys(row.method for row in rows))
    figures: dict[str, dict[str, dict[str, Any]]] = {method: {} for method in methods}
    counted: dict[tuple[str, str, str], int] = {}
    for row in rows:
        key = row.method, row.region, row.metric
        counted[key] = counted.get(key, 0) + row.n * (not math.isnan(row.value))
    for (method, region, metric), mean in means(rows).items():
        entry = {name: plain(value) for name, value in mean._asdict().items()}
        entry["n"] = counted[method, region, metric]
        figures[method].setdefault(region, {})[metric] = entry
    volumes = {row.volume for row in rows}
    return {
        "about": about,
        "counts": {
            "evaluated": len(volumes),
            "patients": len({row.patient for row in rows}),
            "refused": len(refused),
            "warnings": len(warnings),
            "empty_figures": sum(math.isnan(row.value) for row in rows),
        },
        "bars": {method: judge_bars(rows, method) for method in methods},
        "figures": figures,
        "refused": list(refused),
        "warnings": list(warnings),
    }


def plain(value: float | int) -> float | int | str | None:
    """Turns a number into JSON: NaN becomes null, infinity (PSNR of equal volumes) the word `inf`."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
