"""The verdict on arms whose difference is known."""

import math

import numpy as np
import pytest

from bundle.emboli.readings import kind_name
from bundle.reports.comparison import (
    BETTER,
    DESCRIPTIVE,
    NOT_SHOWN,
    WORSE,
    arms_differ,
    compare,
    describe_changes,
    sign_flip_p,
)
from bundle.reports.rows import WHOLE, Row

CLOT = kind_name(4, 1.0, "all")
NEUTRAL = {
    (CLOT, "clot_contrast"): 0.9,
    ("vessel", "false_emboli"): 0.0,
    (WHOLE, "lpips"): 0.2,
    (WHOLE, "gradient_ratio"): 0.8,
    (WHOLE, "nps_ratio_low"): 0.8,
    (WHOLE, "nps_ratio_middle"): 0.5,
    (WHOLE, "nps_ratio_high"): 0.3,
    (WHOLE, "psnr"): 38.0,
}


def arm(n_patients, seed=0, **changes):
    """Rows of an arm; `changes` are added to the metrics of that name."""
    generator = np.random.default_rng(seed)
    rows = []
    for patient in range(n_patients):
        for (region, metric), value in NEUTRAL.items():
            moved = value + 0.01 * patient * (metric != "false_emboli") + changes.get(metric, 0)
            moved += generator.normal(0, 1e-4) * (metric != "false_emboli")
            rows.append(Row(f"v{patient}", f"p{patient}", "model", region, metric, moved))
    return rows


def verdict(n_patients=8, n_seeds=2, **changes):
    base = [arm(n_patients, seed) for seed in range(n_seeds)]
    other = [arm(n_patients, 10 + seed, **changes) for seed in range(n_seeds)]
    return compare(base, other)


def test_sharper_without_harm_is_better():
    found = verdict(lpips=-0.05, gradient_ratio=0.1, nps_ratio_high=0.2)
    assert found.verdict == BETTER and "LPIPS" in found.reason
    assert found.tests[2].n_better == 8 and found.tests[2].p == pytest.approx(2 / 2**8)


@pytest.mark.parametrize("harm", [{"clot_contrast": -0.1}, {"false_emboli": 2}])
def test_lost_or_invented_emboli_are_worse_however_sharp(harm):
    found = verdict(lpips=-0.05, gradient_ratio=0.1, **harm)
    assert found.verdict == WORSE


def test_no_difference_is_not_shown():
    assert verdict().verdict == NOT_SHOWN


def test_the_order_ends_at_the_first_that_fails():
    """Sharper edges decide nothing where LPIPS, which comes first, is not better."""
    found = verdict(gradient_ratio=0.1)
    assert found.verdict == NOT_SHOWN
    assert [test.reached for test in found.tests] == [True, True, True, False, False, False]
    assert found.tests[3].outcome == "better"


def test_a_figure_that_nobody_measured_is_left_out_of_the_order():
    base, other = (
        [[row for row in arm(8, n, gradient_ratio=0.1 * n) if row.metric != "lpips"]] for n in (0, 1)
    )
    found = compare(base, other)
    assert found.tests[2].outcome == "not measured" and found.verdict == BETTER


def test_without_clot_figures_nothing_is_called_better():
    arms = [arm(8, n, lpips=-0.1 * n) for n in (0, 1)]
    base, other = ([row for row in rows if row.region != CLOT] for rows in arms)
    found = compare([base], [other])
    assert found.verdict == NOT_SHOWN and "contrast kept, emboli of 4 mm: not measured" in found.reason


@pytest.mark.parametrize("n_patients", [1, 3, 5])
@pytest.mark.parametrize("changes", [{"lpips": -0.1}, {"clot_contrast": -0.5}])
def test_few_patients_give_a_description_only(n_patients, changes):
    found = verdict(n_patients, **changes)
    assert found.verdict == DESCRIPTIVE and f"n = {n_patients}" in found.reason
    assert {test.outcome for test in found.tests} == {"too few patients"}


def test_a_guard_that_too_few_patients_could_trip_guards_nothing():
    """Clots in 5 of 8 patients: no loss could be significant, so gains elsewhere are not called better."""
    arms = [arm(8, n, lpips=-0.1 * n, clot_contrast=-0.3 * n) for n in (0, 1)]
    few = [[r for r in rows if r.region != CLOT or r.patient < "p5"] for rows in arms]
    found = compare(*([rows] for rows in few))
    assert found.verdict == NOT_SHOWN and "emboli of 4 mm: too few patients, so harm" in found.reason


def test_seeds_that_disagree_show_nothing():
    base = [arm(8, 0), arm(8, 1)]
    other = [arm(8, 2, lpips=-0.2), arm(8, 3, lpips=0.05)]
    found = compare(base, other)
    assert found.tests[2].p < 0.05 and not found.tests[2].seeds_agree
    assert found.verdict == NOT_SHOWN


def test_closeness_to_one_counts_and_not_size():
    assert verdict(lpips=-0.05, gradient_ratio=0.5).tests[3].outcome == "worse"


@pytest.mark.parametrize(("loss_db", "outcome"), [(-0.3, "passed"), (-0.7, "failed")])
def test_psnr_may_lose_half_a_decibel(loss_db, outcome):
    found = verdict(lpips=-0.05, gradient_ratio=0.05, nps_ratio_high=0.2, psnr=loss_db)
    assert found.tests[5].outcome == outcome and found.verdict == BETTER


def test_volumes_of_one_patient_count_once():
    rows = arm(6)
    twice = rows + [row._replace(volume=f"{row.volume}b") for row in rows if row.patient == "p0"]
    assert compare([twice], [twice]).tests[0].n_patients == 6


@pytest.mark.parametrize(("n", "p"), [(3, 0.25), (5, 0.0625), (6, 0.03125)])
def test_the_smallest_p_of_a_sign_flip_test_is_that_of_its_number(n, p):
    assert sign_flip_p(np.arange(1, n + 1.0)) == pytest.approx(p)


def test_a_sign_flip_test_of_nothing_says_nothing_and_holds_its_level():
    generator = np.random.default_rng(1)
    assert sign_flip_p(np.zeros(7)) == 1
    hits = [sign_flip_p(generator.normal(size=9)) < 0.05 for _ in range(300)]
    assert np.mean(hits) < 0.09
    assert sign_flip_p(np.full(40, 0.3)) < 0.001


def test_equal_volumes_with_infinite_psnr_do_not_differ():
    rows = [row._replace(value=math.inf) if row.metric == "psnr" else row for row in arm(7)]
    assert compare([rows], [rows]).tests[5].difference.value == 0


def test_evaluations_with_other_settings_do_not_compare():
    one = {"hu_window": [-1000, 1000], "seed": 0, "lpips_backbone": "vgg"}
    assert arms_differ({"a": one, "b": dict(one)}) is None
    assert "`seed` must be the same in all folders, got 0 in a, 1 in b" in arms_differ(
        {"a": one, "b": one | {"seed": 1}}
    )


def test_arms_are_told_in_their_own_values_and_differences_by_how_much_the_other_is_better():
    lpips, sharpness = verdict(lpips=-0.05, gradient_ratio=0.1).tests[2:4]
    assert (lpips.reference, lpips.other) == (pytest.approx(0.235, abs=1e-3), pytest.approx(0.185, abs=1e-3))
    assert lpips.difference.value == pytest.approx(0.05, abs=1e-3)
    # a ratio of 0.8 is 0.2 away from 1
    assert (sharpness.reference, sharpness.difference.value) == (
        pytest.approx(0.165, abs=2e-3),
        pytest.approx(0.1, abs=0.02),
    )


def test_every_figure_is_described_with_its_change():
    changes = {(one.region, one.metric): one for one in describe_changes([arm(4)], [arm(4, seed=1, psnr=-2)])}
    assert changes.keys() == NEUTRAL.keys()
    psnr = changes[WHOLE, "psnr"]
    assert psnr.n_patients == 4 and psnr.difference.value == pytest.approx(-2, abs=1e-3)
