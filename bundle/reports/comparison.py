"""Decides whether one way of training is better than another, by a rule that was fixed beforehand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bundle.emboli.readings import kind_name
from bundle.metrics.observers import Interval, bootstrap_mean
from bundle.metrics.texture import BANDS
from bundle.reports.rows import WHOLE, Row
from bundle.reports.summary import plain

MIN_PATIENTS = 6
SIGNIFICANT = 0.05
MAX_EXACT = 14
N_FLIPS = 20_000
PSNR_MARGIN_DB = 0.5
Z_OF_POWER = 1.96 + 0.84
"""Two-sided 5 % and a power of 80 %."""
TOO_FEW = "too few patients"
"""Outcome of a test with so few patients that it could not fail; a guard that cannot fail guards nothing."""
BETTER, WORSE, NOT_SHOWN, DESCRIPTIVE = "better", "worse", "not shown", "descriptive only"


class Primary(NamedTuple):
    """A figure that decides.

    Attributes:
        name: in words.
        keys: regions and metrics, whose values are averaged.
        aim: `not worse`, `better` or `not inferior`.
        value: turns a figure into what is compared.
        is_high_good: whether a higher value is better.
    """

    name: str
    keys: tuple[tuple[str, str], ...]
    aim: str
    value: Callable[[float], float]
    is_high_good: bool


def _as_it_is(value: float) -> float:
    return value


def _from_one(value: float) -> float:
    return abs(value - 1)


PRIMARIES = (
    Primary(
        "contrast kept, emboli of 4 mm",
        ((kind_name(4, 1.0, "all"), "clot_contrast"),),
        "not worse",
        _as_it_is,
        True,
    ),
    Primary("invented emboli per volume", (("vessel", "false_emboli"),), "not worse", _as_it_is, False),
    Primary("LPIPS", ((WHOLE, "lpips"),), "better", _as_it_is, False),
    Primary("sharpness, distance from 1", ((WHOLE, "gradient_ratio"),), "better", _from_one, False),
    Primary(
        "noise power, distance from 1, mean of three bands",
        tuple((WHOLE, f"nps_ratio_{band}") for band in BANDS),
        "better",
        _from_one,
        False,
    ),
    Primary("PSNR in dB", ((WHOLE, "psnr"),), "not inferior", _as_it_is, True),
)
"""In the order in which they are tested."""


class Test(NamedTuple):
    """One primary in both arms.

    Attributes:
        name: of the primary.
        aim: see `Primary`.
        reference: mean value of the arm that is compared with.
        other: mean value of the arm in question.
        difference: by how much the other is better, mean over patients with its interval.
        p: two-sided, of a sign-flip test over patients.
        n_better: patients for whom the other is better.
        n_worse: patients for whom it is worse.
        n_patients: with both.
        seeds_agree: whether the mean difference has one sign in all training seeds.
        detectable: smallest difference that this many patients would show four times in five.
        reached: whether no test before it ended the order.
        outcome: `better`, `worse`, `passed`, `failed`, `not shown`, `not measured` or `too few patients`.
    """

    name: str
    aim: str
    reference: float
    other: float
    difference: Interval
    p: float
    n_better: int
    n_worse: int
    n_patients: int
    seeds_agree: bool
    detectable: float
    reached: bool
    outcome: str


class Verdict(NamedTuple):
    """The answer, its reason in one sentence, and the tests behind it."""

    verdict: str
    reason: str
    tests: tuple[Test, ...]

    def as_dict(self) -> dict[str, Any]:
        """Returns the verdict as dictionaries and lists, for JSON."""
        tests = [
            {
                name: [plain(part) for part in value] if isinstance(value, Interval) else plain(value)
                for name, value in test._asdict().items()
            }
            for test in self.tests
        ]
        return {"verdict": self.verdict, "reason": self.reason, "tests": tests}


def compare(reference: Sequence[Sequence[Row]], other: Sequence[Sequence[Row]]) -> Verdict:
    """Compares two arms.

    The primaries are tested in their fixed order, each two-sided at 0.05, and the first that fails ends the
    order: what comes later is reported but decides nothing. Patients are the units, never slices or sites;
    the training seeds of a patient are averaged. With fewer than 6 patients no sign-flip test can reach 0.05,
    so the verdict is descriptive.

    Args:
        reference: rows of `metrics.csv`, one list per training seed.
        other: of the arm in question, the same number of seeds in the same order.
    """
    tests, is_open, n_most = [], True, 0
    for primary in PRIMARIES:
        differences, means = _differences(primary, reference, other)
        n_most = max(n_most, differences.shape[1])
        test = _test(primary, differences, means, is_open)
        tests.append(test)
        is_open = is_open and test.outcome not in ("worse", "failed", "not shown", TOO_FEW)
    return _verdict(tuple(tests), n_most)


def sign_flip_p(differences: np.ndarray) -> float:
    """Returns the two-sided p of a mean of 0: the share of sign flips whose mean is at least as far from 0.

    It is exact up to 14 differences, and taken from 20,000 random flips above.

    Args:
        differences: (N,).
    """
    n = len(differences)
    if n <= MAX_EXACT:
        signs = np.array(list(itertools.product((1, -1), repeat=n)), float).reshape(-1, n)
    else:
        signs = np.random.default_rng(0).choice((1.0, -1.0), (N_FLIPS, n))
        signs[0] = 1
    sums = np.abs(signs @ differences)
    return float(np.mean(sums >= abs(differences.sum()) * (1 - 1e-12)))


def _differences(
    primary: Primary, reference: Sequence[Sequence[Row]], other: Sequence[Sequence[Row]]
) -> tuple[np.ndarray, tuple[float, float]]:
    """Returns (S, P): how much better the other is, by seed and patient; and both arms' mean values."""
    arms = [[_values(primary, rows) for rows in arm] for arm in (reference, other)]
    known = [set(of_patient) for arm in arms for of_patient in arm]
    patients = sorted(set.intersection(*known)) if known else []
    values = np.array([[[one[p] for p in patients] for one in arm] for arm in arms]).reshape(
        2, len(reference), len(patients)
    )
    if not patients:
        return values[1] - values[0], (math.nan, math.nan)
    with np.errstate(invalid="ignore"):
        differences = (values[1] - values[0]) * (1 if primary.is_high_good else -1)
    differences[np.isnan(differences)] = 0  # both infinite, as PSNR of equal volumes
    return differences, (float(values[0].mean()), float(values[1].mean()))


def _values(primary: Primary, rows: Sequence[Row]) -> dict[str, float]:
    """Returns the value of each patient: the mean over its volumes and the primary's figures."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if (row.region, row.metric) in primary.keys and not math.isnan(row.value):
            found.setdefault(row.patient, []).append(primary.value(row.value))
    return {patient: float(np.mean(values)) for patient, values in found.items()}


def _test(primary: Primary, differences: np.ndarray, means: tuple[float, float], reached: bool) -> Test:
    of_patients = differences.mean(axis=0)
    n = len(of_patients)
    if n == 0:
        nothing = Interval(math.nan, math.nan, math.nan)
        return Test(
            primary.name,
            primary.aim,
            *means,
            nothing,
            math.nan,
            0,
            0,
            0,
            False,
            math.nan,
            reached,
            "not measured",
        )
    interval, p = bootstrap_mean(of_patients), sign_flip_p(of_patients)
    spread = float(of_patients.std(ddof=1)) if n > 1 else math.nan
    signs = np.sign(differences.mean(axis=1))
    seeds_agree = bool(np.all(signs == signs[0]))
    return Test(
        primary.name, primary.aim, *means, interval, p,
        int(np.sum(of_patients > 0)), int(np.sum(of_patients < 0)), n, seeds_agree,
        Z_OF_POWER * spread / math.sqrt(n), reached,
        _outcome(primary.aim, interval, p, seeds_agree) if n >= MIN_PATIENTS else TOO_FEW,
    )  # fmt: skip


def _outcome(aim: str, difference: Interval, p: float, seeds_agree: bool) -> str:
    is_told = p < SIGNIFICANT
    if aim == "not inferior":
        return "passed" if difference.low > -PSNR_MARGIN_DB else "failed"
    if is_told and difference.value < 0:
        return "worse"
    if aim == "not worse":
        return "passed"
    return "better" if is_told and seeds_agree else "not shown"


def _verdict(tests: tuple[Test, ...], n_patients: int) -> Verdict:
    if n_patients < MIN_PATIENTS:
        effects = ", ".join(
            f"{test.name} {test.detectable:.3g}" for test in tests if math.isfinite(test.detectable)
        )
        reason = f"n = {n_patients}, at least {MIN_PATIENTS} patients are needed" + (
            f"; smallest differences that they would show four times in five: {effects}" if effects else ""
        )
        return Verdict(DESCRIPTIVE, reason, tests)
    guards = [test for test in tests if test.aim == "not worse"]
    missing = [f"{test.name}: {test.outcome}" for test in guards if test.outcome in ("not measured", TOO_FEW)]
    worse = [test.name for test in guards if test.reached and test.outcome == "worse"]
    better = [test.name for test in tests if test.reached and test.outcome == "better"]
    if worse:
        return Verdict(WORSE, f"{', '.join(worse)}: significantly worse", tests)
    if missing:
        return Verdict(NOT_SHOWN, f"{', '.join(missing)}, so harm cannot be ruled out", tests)
    if better:
        failed = [test.name for test in tests if test.aim == "not inferior" and test.outcome == "failed"]
        note = f"; {', '.join(failed)}: non-inferiority is not shown" if failed else ""
        return Verdict(BETTER, f"{', '.join(better)}: better, emboli not worse{note}", tests)
    reason = "no figure of sharpness or texture is better before the first test that fails"
    return Verdict(NOT_SHOWN, reason, tests)


class Change(NamedTuple):
    """A figure that decides nothing: mean of both arms, and other less reference over patients."""

    region: str
    metric: str
    reference: float
    other: float
    difference: Interval
    n_patients: int


def describe_changes(reference: Sequence[Sequence[Row]], other: Sequence[Sequence[Row]]) -> list[Change]:
    """Lists every figure that both arms have, in the order of the tables.

    Args:
        reference: rows of `metrics.csv`, one list per training seed.
        other: of the arm in question, the same number of seeds in the same order.
    """
    keys = dict.fromkeys((row.region, row.metric) for rows in reference for row in rows)
    changes = []
    for key in keys:
        figure = Primary("", (key,), "", _as_it_is, True)
        differences, means = _differences(figure, reference, other)
        if differences.shape[1] and np.isfinite(differences).all():
            interval = bootstrap_mean(differences.mean(axis=0))
            changes.append(Change(*key, *means, interval, differences.shape[1]))
    return changes


def arms_differ(about: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Says which setting makes evaluations incomparable; None if none does.

    Args:
        about: `about` of each summary by the name of its folder.
    """
    for setting in ("hu_window", "seed", "lpips_backbone"):
        values = {name: str(one.get(setting)) for name, one in about.items()}
        if len(set(values.values())) > 1:
            told = ", ".join(f"{value} in {name}" for name, value in values.items())
            return f"`{setting}` must be the same in all folders, got {told}; evaluate them alike"
    return None
