"""Whole evaluations: files in, tables and a report out."""

import base64
import csv
import gzip
import json
import math
import re

import nibabel as nib
import numpy as np
import pytest

from bundle.data.volumes.fingerprint import voxel_fingerprint
from bundle.emboli.readings import kind_name
from bundle.evaluation.workflow import Evaluation, EvaluationError
from bundle.reports.tables import read_metrics
from bundle.reports.wording import WORDS
from bundle.run.atomic import UnwritableError

FOUND = ("metrics.csv", "emboli.csv", "false_emboli.csv", "summary.json", "report.html", "volumes.json")


def save(path, voxels, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.diag([1.2, 1.2, 1.2, 1]) if affine is None else affine), path)
    return path


def evaluate(folder, rows, **settings):
    """Runs an evaluation of pairs; `rows` are lines of the table."""
    table = folder.with_suffix(".csv")
    header = "original,reconstruction,patient,inserted_original,inserted_reconstruction"
    table.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    evaluation = Evaluation(folder, pairs=table, progress=False, **settings)
    evaluation.run()
    return evaluation


def block(hu=40):
    """A volume without contrast agent that is quick to evaluate."""
    voxels = np.full((40, 36, 12), -1000, np.int16)
    voxels[6:34, 6:30] = hu
    return voxels + np.random.default_rng(0).integers(-20, 20, voxels.shape, np.int16)


@pytest.fixture(scope="module")
def twice(phantom, blur, tmp_path_factory):
    """A blurred phantom as RAS and as LAS files, evaluated in one run."""
    folder = tmp_path_factory.mktemp("twice")
    flipped = np.diag([-1.2, 1.2, 1.2, 1])
    flipped[0, 3] = 1.2 * (phantom.truth.hu.shape[0] - 1)
    recon = blur(phantom.truth.hu, 0.7)
    for name, affine in (("ras", None), ("las", flipped)):
        for part, voxels in (("original", phantom.truth.hu), ("recon", recon)):
            voxels = voxels[::-1] if name == "las" else voxels
            save(folder / name / f"{part}.nii.gz", voxels, affine)
    rows = [f"{name}/original.nii.gz,{name}/recon.nii.gz,{name},," for name in ("ras", "las")]
    return folder, evaluate(folder / "out", rows)


def test_all_files_are_there_and_nothing_unfinished(twice):
    folder, _ = twice
    assert {path.name for path in (folder / "out").iterdir() if path.is_file()} == set(FOUND)
    assert not [path for path in (folder / "out").rglob(".*")]


def test_a_mirrored_file_has_the_same_figures(twice):
    _, evaluation = twice
    halves = [
        [row[3:] for row in evaluation.results.rows if row.patient == patient] for patient in ("ras", "las")
    ]
    assert len(halves[0]) > 100
    assert [str(row) for row in halves[0]] == [str(row) for row in halves[1]]


def test_tables_say_what_was_found(twice):
    folder, evaluation = twice
    rows = read_metrics(folder / "out" / "metrics.csv")
    assert len(rows) == len(evaluation.results.rows)
    assert all(row.note for row in rows if math.isnan(row.value))
    summary = json.loads((folder / "out" / "summary.json").read_text(encoding="utf-8"))
    assert summary["counts"] == {
        "evaluated": 2, "patients": 2, "refused": 0, "warnings": 0,
        "empty_figures": sum(math.isnan(row.value) for row in rows),
    }  # fmt: skip
    psnr = summary["figures"]["pairs"]["whole"]["psnr"]
    assert psnr["n_patients"] == 2 and psnr["mean"] == pytest.approx(rows[0].value, rel=1e-6)


def test_every_figure_has_words_for_people(twice):
    _, evaluation = twice
    assert {row.metric for row in evaluation.results.rows} - WORDS.keys() == set()


def test_a_report_tells_the_verdict_first_and_every_limit(twice):
    folder, _ = twice
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert "2 volumes of 2 patients evaluated" in page and "limits passed" in page
    assert (
        page.count("not measured</small>") == 4
    )  # the limits on inserted emboli, which no file was given for
    assert "Invented emboli, worst volume" in page and "Noise power in blood, fine grain" in page


def test_clot_figures_are_empty_and_not_zero_without_inserted_volumes(twice):
    _, evaluation = twice
    clots = [row for row in evaluation.results.rows if row.metric == "clot_contrast"]
    assert clots and all(math.isnan(row.value) for row in clots)
    assert "4 of 4 reconstructions with emboli are not given" in {row.note for row in clots}


def test_inserted_volumes_come_back_with_their_clot_figures(twice, phantom, blur):
    """The files of OUT/inserted, reconstructed by some tool, here a blur of 0.7 mm."""
    folder, _ = twice
    rows = []
    for path in sorted((folder / "out" / "inserted").glob("original_clots_*.nii.gz")):
        made = save(folder / "made" / path.name, blur(np.asanyarray(nib.load(path).dataobj), 0.7))
        rows.append(f"ras/original.nii.gz,ras/recon.nii.gz,p,out/inserted/{path.name},made/{made.name}")
    evaluation = evaluate(folder / "again", rows, write_volumes=False)
    assert len(rows) == 4 and evaluation.results.warnings == []
    (clot,) = [
        row
        for row in evaluation.results.rows
        if row.metric == "clot_contrast" and row.region == kind_name(4, 1.0, "all")
    ]
    assert 0.7 < clot.value < 0.9 and clot.n >= 12
    with np.load(folder / "again" / "kept" / "original.npz") as kept:
        assert kept["clot_recon"].shape == kept["clot_original"].shape == (clot.n, 48, 48)
        assert kept["clot_contrast"].mean() == pytest.approx(clot.value, rel=1e-4)
        middle = kept["clot_original"][:, 23:26, 23:26].mean(axis=(1, 2))
        assert np.all(middle < 200)  # of 350 HU of blood
    assert "inserted emboli of 4 mm in the original" in (folder / "again" / "report.html").read_text(
        encoding="utf-8"
    )
    with (folder / "again" / "emboli.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * len(phantom.changes)


def test_a_page_for_a_browser_shows_the_volume_and_its_inserted_emboli(twice):
    folder, _ = twice
    assert {path.name for path in (folder / "out" / "viewer").iterdir()} == {
        "original.html",
        "original_2.html",
    }
    rows = [
        "ras/original.nii.gz,ras/recon.nii.gz,p,out/inserted/original_clots_100_even.nii.gz,ras/recon.nii.gz"
    ]
    evaluate(folder / "viewed", rows)
    page = (folder / "viewed" / "viewer" / "original.html").read_text(encoding="utf-8")
    (content,) = re.findall(r'id="content">([^<]+)<', page)
    whole, clots, *boxes = json.loads(content)["views"]
    assert whole["name"] == "whole volume" and clots["name"].startswith("inserted emboli (in both volumes)")
    assert "around large error 1, full resolution" in [box["name"] for box in boxes]
    # the reconstruction is that without emboli: none of their contrast is there
    assert {place["name"] for place in clots["places"]} >= {"embolus of 4 mm, 0% of its contrast kept"}
    (held,) = re.findall(r'id="original-1">([^<]+)<', page)
    shown = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(held)))
    inserted = nib.load(folder / "out" / "inserted" / "original_clots_100_even.nii.gz")
    corner = np.rint(np.linalg.inv(inserted.affine) @ shown.affine[:, 3])[:3].astype(int)
    box = tuple(slice(at, at + size) for at, size in zip(corner, shown.shape, strict=True))
    assert np.array_equal(np.asanyarray(shown.dataobj), np.asanyarray(inserted.dataobj)[box])


def test_a_foreign_inserted_volume_is_named(twice):
    folder, _ = twice
    row = "ras/original.nii.gz,ras/recon.nii.gz,p,ras/recon.nii.gz,ras/recon.nii.gz"
    evaluation = evaluate(folder / "foreign", [row], write_volumes=False)
    (warning,) = evaluation.results.warnings
    assert "recon.nii.gz is not what `seed` 0 makes of the original" in warning


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(twice):
    folder, _ = twice
    row = "ras/original.nii.gz,ras/recon.nii.gz,ras,,"
    runs = [folder / f"run_{n}" for n in (1, 2)]
    for run in runs:
        evaluate(run, [row])
    for name in FOUND[:4]:
        assert (runs[0] / name).read_bytes() == (runs[1] / name).read_bytes()
    for path in (runs[0] / "inserted").iterdir():
        assert path.read_bytes() == (runs[1] / "inserted" / path.name).read_bytes()


def test_bad_volumes_are_named_and_counted_and_the_rest_is_evaluated(tmp_path):
    good = block()
    holes = good.astype(np.float32)
    holes[3, 3, 3] = np.nan
    for name, voxels in {
        "good": good, "short": good[..., :-1], "unscaled": (good / 500).astype(np.int16),
        "holes": holes, "shifted": np.roll(good, 1, axis=1), "thin": good[..., :5],
    }.items():  # fmt: skip
        save(tmp_path / f"{name}.nii.gz", voxels)
    names = ("good", "short", "unscaled", "holes", "shifted", "nothing")
    rows = [f"good.nii.gz,{name}.nii.gz,{name},," for name in names]
    evaluation = evaluate(tmp_path / "out", [*rows, "thin.nii.gz,thin.nii.gz,thin,,"])

    reasons = [one["reason"] for one in evaluation.results.refused]
    assert [reason.split(";")[0][:60] for reason in reasons] and len(reasons) == 4
    for said, reason in zip(("one shape", "must be in HU", "NaN", "nothing.nii.gz"), reasons, strict=True):
        assert said in reason and "\n" not in reason
    assert sum("looks shifted by (0, 1, 0)" in warning for warning in evaluation.results.warnings) == 1
    assert sum("are one file" in warning for warning in evaluation.results.warnings) == 2
    notes = {(row.patient, row.metric): row.note for row in evaluation.results.rows if math.isnan(row.value)}
    assert notes["good", "false_emboli"] == "no contrast agent was found"
    assert notes["good", "clot_contrast"] == "no contrast agent was found"
    assert notes["thin", "ssim_3d"] == "5 slices, at least 7 are needed"
    with pytest.raises(SystemExit) as ended:
        evaluation.exit_if_refused()
    assert ended.value.code == 3


def test_a_folder_that_cannot_be_written_ends_the_run_and_refuses_no_volume(tmp_path):
    save(tmp_path / "one" / "ct.nii.gz", block())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").write_text("a file where a folder has to be", encoding="utf-8")
    with pytest.raises(UnwritableError, match="cannot be written"):
        evaluate(tmp_path / "out", ["one/ct.nii.gz,one/ct.nii.gz,p,,"])


def test_a_report_escapes_what_comes_from_files_and_loads_nothing(tmp_path):
    save(tmp_path / "good.nii.gz", block())
    evaluate(tmp_path / "out", ["good.nii.gz,good.nii.gz,<script>alert(1)</script>,,"])
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "not a medical device" in page and "data:image/png;base64," in page


@pytest.fixture
def checkpoint(tmp_path):
    import torch

    from bundle.checkpoints.file import network_settings, write_checkpoint
    from bundle.networks.vqgan import build_vqgan

    network = build_vqgan("lite", "ema", 64)
    with torch.no_grad():
        network.quantizer.initialize(network.encode_latent(torch.rand(1, 1, 32, 32, 32) * 2 - 1))

    def write(**more):
        content = {"model": network.state_dict(), "network": network_settings("lite", "ema", 64, -1000, 1000)}
        write_checkpoint(tmp_path / "model.pt", content | more)
        return tmp_path / "model.pt"

    return write


def test_a_checkpoint_is_evaluated_with_its_codes(tmp_path, checkpoint):
    save(tmp_path / "data" / "p1" / "ct.nii.gz", block())
    evaluation = Evaluation(tmp_path / "out", tmp_path / "data", checkpoint(), tile_size=32, progress=False)
    evaluation.run()
    figures = {row.metric: row.value for row in evaluation.results.rows}
    assert figures["bits_per_voxel_nominal"] == pytest.approx(6 / 64)
    assert 0 < figures["code_usage"] <= 1 <= figures["code_perplexity"] <= 64
    assert figures["bits_per_voxel"] > 0 and figures["psnr"] > 0
    recon = nib.load(tmp_path / "out" / "reconstructions" / "p1_ct_recon.nii.gz")
    assert recon.shape == block().shape and recon.get_data_dtype() == np.int16


def test_a_volume_that_was_trained_on_is_refused_unless_that_is_wanted(tmp_path, checkpoint):
    save(tmp_path / "data" / "p1" / "ct.nii.gz", block())
    path = checkpoint(trained_on={"voxels": [voxel_fingerprint(block())], "patients": []})
    arguments = (tmp_path / "data", path)
    refusing = Evaluation(tmp_path / "no", *arguments, tile_size=32, progress=False)
    refusing.run()
    assert "was trained on this volume" in refusing.results.refused[0]["reason"] and not refusing.results.rows
    allowing = Evaluation(tmp_path / "yes", *arguments, tile_size=32, progress=False, allow_seen=True)
    allowing.run()
    assert allowing.results.rows and allowing.results.seen == ["p1/ct"]
    assert "was trained on these volumes" in (tmp_path / "yes" / "report.html").read_text(encoding="utf-8")


def test_a_codec_is_judged_beside_the_rest_and_one_that_is_missing_says_so(tmp_path, monkeypatch):
    save(tmp_path / "a.nii.gz", block())
    evaluation = evaluate(
        tmp_path / "out", ["a.nii.gz,a.nii.gz,a,,"], codecs=["hevc"], codec_bits_per_voxel=4.0
    )
    figures = {row.metric: row.value for row in evaluation.results.rows if row.method == "hevc"}
    assert figures["bits_per_voxel"] == pytest.approx(4, rel=0.03) and 25 < figures["psnr"] < 80
    monkeypatch.setattr("imageio_ffmpeg.get_ffmpeg_exe", lambda: str(tmp_path / "none"))
    evaluation = evaluate(tmp_path / "none", ["a.nii.gz,a.nii.gz,a,,"], codecs=["hevc"])
    (row,) = [row for row in evaluation.results.rows if row.method == "hevc"]
    assert math.isnan(row.value) and "ffmpeg cannot be run" in row.note
    with pytest.raises(EvaluationError, match="`codecs` must be some of"):
        evaluate(tmp_path / "odd", ["a.nii.gz,a.nii.gz,a,,"], codecs=["webp"])


def test_settings_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(EvaluationError, match="`dataset_dir` and `ckpt_path` must be given, or `pairs`"):
        Evaluation(tmp_path)
    save(tmp_path / "a.nii.gz", block())
    table = tmp_path / "pairs.csv"
    table.write_text("original,reconstruction\na.nii.gz,a.nii.gz\n")
    with pytest.raises(EvaluationError, match="`hu_min` must be below `hu_max`, got 100 and 100"):
        Evaluation(tmp_path, pairs=table, hu_min=100, hu_max=100)
