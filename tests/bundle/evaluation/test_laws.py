"""What every figure of emboli and texture must say of volumes whose truth is known."""

import math

import numpy as np
import pytest

from bundle.emboli.inserted import insert
from bundle.emboli.invented import find_false_emboli
from bundle.emboli.readings import clot_figures, kind_name, read_emboli
from bundle.evaluation.volume import Findings, Judge, judge, rows_of
from bundle.reports.summary import judge_bars

SPACING_MM = (1.2, 1.2, 1.2)
SETTINGS = Judge(-1000, 1000, tile_size=64)


def found_for(phantom, degrade) -> Findings:
    """All figures of what `degrade` makes of the phantom, with and without emboli."""
    voxels = phantom.truth.hu
    return judge(
        phantom.volume,
        degrade(voxels),
        phantom.chest,
        phantom.changes,
        lambda contrast, parity: degrade(insert(voxels, phantom.changes, contrast, parity)),
        SETTINGS,
    )


@pytest.fixture(scope="module")
def degraded(phantom, blur, wipe):
    return {
        "same": found_for(phantom, lambda voxels: voxels.copy()),
        "blur 0.7": found_for(phantom, lambda voxels: blur(voxels, 0.7)),
        "blur 1.5": found_for(phantom, lambda voxels: blur(voxels, 1.5)),
        "wiped": found_for(phantom, wipe),
    }


def figure(found: Findings, metric: str, region: str = "whole") -> float:
    return next(value for where, name, value, *_ in found.figures if (where, name) == (region, metric))


def bars(found: Findings) -> dict:
    rows = list(rows_of(found, "phantom", "nobody", "test"))
    return {f"{bar['region']}, {bar['metric']}": bar["passed"] for bar in judge_bars(rows, "test")}


def test_a_volume_is_perfect_compared_with_itself(degraded):
    same = degraded["same"]
    assert all(reading.clot_contrast == 1 and reading.clot_loc_mm == 0 for reading in same.readings)
    changes = [value for _, name, value, *_ in same.figures if name.endswith("_change") and value == value]
    assert len(changes) >= 16 and set(changes) == {0}
    ratios = "nps_ratio_low nps_ratio_middle nps_ratio_high noise_sd_ratio gradient_ratio seam_score ssim_2d"
    assert {name: figure(same, name) for name in ratios.split()} == dict.fromkeys(ratios.split(), 1.0)
    assert figure(same, "grid") == pytest.approx(1, abs=0.5)
    assert figure(same, "false_emboli", "vessel") == 0 and figure(same, "psnr") == math.inf
    assert False not in bars(same).values()


@pytest.mark.parametrize("size_mm", [2, 4])
@pytest.mark.parametrize("metric", ["clot_contrast", "clot_contrast_lowest_tenth", "clot_auc_npw"])
def test_less_blur_is_better_in_every_measure_of_clots(degraded, metric, size_mm):
    for contrast in (1.0, 0.15):
        region = kind_name(size_mm, contrast, "all")
        values = [figure(degraded[name], metric, region) for name in ("same", "blur 0.7", "blur 1.5")]
        assert values == sorted(values, reverse=True) and values[0] > values[2]


def test_wiping_clots_out_fails_although_its_psnr_is_the_highest(degraded):
    psnr = {name: figure(found, "psnr") for name, found in degraded.items() if name != "same"}
    assert max(psnr, key=lambda name: psnr[name]) == "wiped"
    verdicts = bars(degraded["wiped"])
    assert verdicts[f"{kind_name(4, 1.0, 'all')}, clot_contrast"] is False
    assert verdicts[f"{kind_name(4, 1.0, 'all')}, clot_contrast_lowest_tenth"] is False
    assert figure(degraded["wiped"], "clot_contrast", kind_name(4, 1.0, "all")) < 0.3


def test_a_gaussian_blur_keeps_of_a_clot_what_the_integral_says(phantom, degraded, blur):
    """Blur is linear: of a change d it leaves G d, whatever the anatomy around."""
    of = {one.site.number: one for one in degraded["blur 0.7"].readings if one.contrast == 1}
    for change in phantom.changes:
        d = np.pad(change.hu, 8)
        expected = (blur(d, 0.7) * d.astype(float)).sum() / (d.astype(float) ** 2).sum()
        assert of[change.site.number].clot_contrast == pytest.approx(expected, abs=0.02)


def test_a_linear_change_of_intensity_is_the_contrast_that_is_kept(phantom):
    found = found_for(phantom, lambda voxels: np.rint(0.8 * voxels + 20).astype(np.int16))
    assert figure(found, "clot_contrast", kind_name(4, 1.0, "all")) == pytest.approx(0.8, abs=0.005)
    assert figure(found, "noise_sd_ratio") == pytest.approx(0.8, abs=0.01)
    assert figure(found, "nps_ratio_high") == pytest.approx(0.64, abs=0.02)
    assert figure(found, "gradient_ratio") == pytest.approx(0.8, abs=0.01)
    assert figure(found, "bias_hu", "lung") == pytest.approx(0.2 * 862 + 20, abs=6)


def test_a_clot_that_was_moved_is_found_where_it_went(phantom):
    found = found_for(phantom, lambda voxels: np.roll(voxels, 1, axis=0))
    assert figure(found, "clot_loc_mm", kind_name(4, 1.0, "all")) == pytest.approx(1.2, abs=0.05)


def test_an_observer_of_noise_alone_guesses(phantom):
    """With another noise instead of an embolus there is nothing to see."""
    generator = np.random.default_rng(1)
    noise = lambda: generator.normal(0, 20, phantom.truth.hu.shape).astype(np.int16)  # noqa: E731
    recon, recon_with = phantom.truth.hu + noise(), phantom.truth.hu + noise()
    readings = [
        reading
        for parity in (0, 1)
        for reading in read_emboli(
            phantom.truth.hu, recon, recon_with, phantom.changes, 1.0, parity, SPACING_MM
        )
    ]
    found = {one.metric: one for one in clot_figures(readings, 2, 1.0, "all")}
    for metric in ("clot_auc_npw", "clot_auc_cho"):
        assert found[metric].low - 0.02 < 0.5 < found[metric].high + 0.02
    assert abs(found["clot_contrast"].value) < 0.1


def test_the_observer_sees_the_larger_and_the_denser_clots_better(degraded):
    auc = [
        figure(degraded["same"], "clot_auc_npw", kind_name(size, contrast, "all"))
        for size, contrast in ((2, 0.15), (4, 0.15), (4, 1.0))
    ]
    assert 0.5 < auc[0] < auc[1] <= auc[2] <= 1


@pytest.mark.parametrize("parity", [0, 1])
def test_as_many_ghosts_are_found_as_were_planted(phantom, parity):
    ghosts = [c for c in phantom.changes if c.site.size_mm in (4, 6) and c.site.parity == parity]
    recon = insert(phantom.truth.hu, ghosts, 1.0, parity)
    spots = find_false_emboli(phantom.truth.hu, recon, SPACING_MM, phantom.chest.lumen)
    places = np.array([spot.voxel for spot in spots])
    assert len(ghosts) > 15 and len(spots) == len(ghosts)
    for ghost in ghosts:
        nearest = np.linalg.norm((places - ghost.site.centre) * SPACING_MM, axis=1).min()
        assert nearest < ghost.site.size_mm / 2 + 1


def test_emboli_of_the_scan_itself_are_not_called_false(phantom):
    voxels = insert(phantom.truth.hu, phantom.changes, 1.0, 0)
    assert find_false_emboli(voxels, voxels.copy(), SPACING_MM, phantom.chest.lumen) == []
    wiped = find_false_emboli(voxels, phantom.truth.hu, SPACING_MM, phantom.chest.lumen)
    assert wiped == []


def test_slight_blur_invents_no_emboli(degraded):
    assert figure(degraded["blur 0.7"], "false_emboli", "vessel") == 0


def test_too_few_sites_leave_the_cell_empty_and_say_so(degraded):
    readings = [one for one in degraded["same"].readings if one.site.size_mm == 4][:11]
    cell = clot_figures(readings, 4, readings[0].contrast, "all")
    assert all(math.isnan(one.value) for one in cell)
    assert {one.note for one in cell} == {"11 sites, at least 12 are needed"}
