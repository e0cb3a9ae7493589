"""Whether one way of training is better than another, by a rule that was fixed before anybody looked."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bundle.evaluation.readings import kind_name
from bundle.evaluation.summary import plain
from bundle.evaluation.volume import WHOLE, Row
from bundle.metrics.observers import Interval, bootstrap_mean
from bundle.metrics.texture import BANDS

MIN_PATIENTS = 6
SIGNIFICANT = 0.05
MAX_EXACT = 14
N_FLIPS = 20_000
PSNR_MARGIN_DB = 0.5
Z_OF_POWER = 1.96 + 0.84
"""Two-sided 5 % and a power of 80 %."""
BETTER, WORSE, NOT_SHOWN, DESCRIPTIVE = "better", "worse", "not shown", "descriptive only"


class Primary(NamedTuple):
    """A figure that decides.

    Attributes:
        name: in words.
        keys: regions and metrics, whose scores are averaged.
        aim: `not worse`, `better` or `not inferior`.
        score: a figure as a score that is better the higher it is.
    """

    name: str
    keys: tuple[tuple[str, str], ...]
    aim: str
    score: Callable[[float], float]


def _as_it_is(value: float) -> float:
    return value


def _lower(value: float) -> float:
    return -value


def _near_one(value: float) -> float:
    return -abs(value - 1)


PRIMARIES = (
    Primary(
        "clot contrast, 4 mm",
        ((kind_name(4, 1.0, "all"), "clot_contrast"),),
        "not worse",
        lambda value: value,
    ),
    Primary("false emboli", (("vessel", "false_emboli"),), "not worse", _lower),
    Primary("LPIPS", ((WHOLE, "lpips"),), "better", _lower),
    Primary("gradient ratio, closeness to 1", ((WHOLE, "gradient_ratio"),), "better", _near_one),
    Primary(
        "noise power ratio, closeness to 1",
        tuple((WHOLE, f"nps_ratio_{band}") for band in BANDS),
        "better",
        _near_one,
    ),
    Primary("PSNR, dB", ((WHOLE, "psnr"),), "not inferior", _as_it_is),
)
"""In the order in which they are tested."""


class Test(NamedTuple):
    """One primary in both arms.

    Attributes:
        name: of the primary.
        aim: what it had to show.
        reference: mean score of the arm that is compared with.
        other: mean score of the arm in question.
        difference: of the scores, other less reference, mean over patients with its interval.
        p: two-sided, of a sign-flip test over patients.
        n_better: patients with a higher score.
        n_worse: patients with a lower one.
        n_patients: with both.
        seeds_agree: whether the mean difference has one sign in all training seeds.
        detectable: smallest difference that this many patients would show four times in five.
        reached: whether the order of tests came so far.
        outcome: `better`, `worse`, `passed`, `failed`, `not shown` or `not measured`.
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
        """As JSON has it."""
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
        is_open = is_open and test.outcome not in ("worse", "failed", "not shown")
    return _verdict(tuple(tests), n_most)


def sign_flip_p(differences: np.ndarray) -> float:
    """Two-sided p of a mean of 0: how many ways to flip the signs give a mean at least as far from 0.

    Exact up to 14 differences, of 20,000 random flips above.

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
    """(S, P) differences of scores by seed and patient, and both arms' mean scores."""
    arms = [[_scores(primary, rows) for rows in arm] for arm in (reference, other)]
    known = [set(scores) for arm in arms for scores in arm]
    patients = sorted(set.intersection(*known)) if known else []
    values = np.array([[[scores[p] for p in patients] for scores in arm] for arm in arms]).reshape(
        2, len(reference), len(patients)
    )
    if not patients:
        return values[1] - values[0], (math.nan, math.nan)
    with np.errstate(invalid="ignore"):
        differences = values[1] - values[0]
    differences[np.isnan(differences)] = 0  # both infinite, as PSNR of equal volumes
    return differences, (float(values[0].mean()), float(values[1].mean()))


def _scores(primary: Primary, rows: Sequence[Row]) -> dict[str, float]:
    """Score of each patient: mean over its volumes and the primary's figures."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if (row.region, row.metric) in primary.keys and not math.isnan(row.value):
            found.setdefault(row.patient, []).append(primary.score(row.value))
    return {patient: float(np.mean(scores)) for patient, scores in found.items()}


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
        _outcome(primary.aim, interval, p, seeds_agree),
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
            f"; differences that so many would show: {effects}" if effects else ""
        )
        return Verdict(DESCRIPTIVE, reason, tests)
    guards = [test for test in tests if test.aim == "not worse"]
    missing = [test.name for test in guards if test.outcome == "not measured"]
    worse = [test.name for test in guards if test.reached and test.outcome == "worse"]
    better = [test.name for test in tests if test.reached and test.outcome == "better"]
    if worse:
        return Verdict(WORSE, f"{', '.join(worse)}: significantly worse", tests)
    if missing:
        return Verdict(NOT_SHOWN, f"{', '.join(missing)}: not measured, so no harm cannot be told", tests)
    if better:
        failed = [test.name for test in tests if test.aim == "not inferior" and test.outcome == "failed"]
        note = f"; {', '.join(failed)}: non-inferiority is not shown" if failed else ""
        return Verdict(BETTER, f"{', '.join(better)}: better, emboli not worse{note}", tests)
    return Verdict(NOT_SHOWN, "no figure of sharpness or texture is better in the order of the tests", tests)


def arms_differ(about: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Which setting makes evaluations incomparable, as a sentence; None if none does.

    Args:
        about: `about` of each summary by the name of its folder.
    """
    for setting in ("hu_window", "seed", "lpips_backbone"):
        values = {name: str(one.get(setting)) for name, one in about.items()}
        if len(set(values.values())) > 1:
            told = ", ".join(f"{value} in {name}" for name, value in values.items())
            return f"`{setting}` must be the same in all folders, got {told}; evaluate them alike"
    return None
