"""The comparison of evaluation folders as a user starts it."""

import csv
import json
import os

import nibabel as nib
import numpy as np
import pytest

from bundle.emboli.readings import kind_name
from bundle.reports.kept import KeptError, read_kept
from bundle.reports.rows import WHOLE, Row
from bundle.reports.tables import EMBOLI, EMBOLI_COLUMNS, TableError, write_metrics, write_table
from scripts.compare import CompareError, main

ABOUT = {"hu_window": [-1000.0, 1000.0], "seed": 0, "lpips_backbone": "vgg"}
FIGURES = {
    (kind_name(4, 1.0, "all"), "clot_contrast"): 0.9,
    ("vessel", "false_emboli"): 0.0,
    (WHOLE, "psnr"): 38.0,
}


def evaluation(folder, original, lpips, n_patients=7, about=ABOUT):
    """A folder as configs/evaluate.yaml leaves it, of patients that share one small volume."""
    (folder / "kept").mkdir(parents=True)
    recon = folder / "recon.nii.gz"
    nib.save(nib.Nifti1Image(np.asanyarray(nib.load(original).dataobj) + np.int16(5), np.eye(4)), recon)
    rows, sites, volumes = [], [], {}
    for n in range(n_patients):
        figures = FIGURES | {(WHOLE, "lpips"): lpips + 0.001 * n, (WHOLE, "bits_per_voxel"): 0.2}
        rows += [Row(f"v{n}", f"p{n}", "model", *key, value) for key, value in figures.items()]
        rows.append(Row(f"v{n}", f"p{n}", "hevc", WHOLE, "lpips", 9.0))
        sites.append(
            (f"v{n}", f"p{n}", "model", 0, 4, 1.0, "central", 0, 5, 5, 3, 0, 0, 0, 300, 0.9, 0, 1, 0, 1, 0)
        )
        volumes[f"v{n}"] = {"stem": f"v{n}", "original": str(original), "reconstruction": str(recon)}
        np.savez(
            folder / "kept" / f"v{n}.npz",
            slice_rmse_hu=np.arange(8.0), frequency_per_mm=np.arange(1, 6) / 10,
            noise_original=np.full(5, 9.0), noise_recon=np.full(5, 4.0),
            clot_site=np.arange(3, 6), clot_contrast=np.array([0.9, 0.8 - lpips, 0.95]),
            clot_original=np.zeros((3, 48, 48), np.int16), clot_recon=np.ones((3, 48, 48), np.int16),
        )  # fmt: skip
    write_metrics(folder / "metrics.csv", rows)
    write_table(folder / EMBOLI, EMBOLI_COLUMNS, sites)
    (folder / "summary.json").write_text(json.dumps({"about": about}))
    (folder / "volumes.json").write_text(json.dumps(volumes))
    return folder


@pytest.fixture
def original(tmp_path):
    voxels = np.random.default_rng(0).integers(-1000, 600, (40, 36, 8), np.int16)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "ct.nii.gz")
    return tmp_path / "ct.nii.gz"


def test_a_verdict_comes_with_figures_and_pictures(tmp_path, original, capsys):
    arms = {}
    for name, lpips in {"base": 0.3, "control": 0.28, "other": 0.2}.items():
        arms[name] = [str(evaluation(tmp_path / f"{name}_{n}", original, lpips + 0.01 * n)) for n in (0, 1)]
    options = [word for name, folders in arms.items() for word in (f"--{name}", *folders)]
    verdict = main([*options, "--output_dir", str(tmp_path / "out")])

    assert verdict.verdict == "better" and "other against control: better" in capsys.readouterr().out
    told = json.loads((tmp_path / "out" / "compare.json").read_text(encoding="utf-8"))
    assert told["verdict"] == "better" and told["compared"] == "other with control"
    lpips = told["tests"][2]
    assert lpips["difference"][0] == pytest.approx(0.08) and lpips["n_better"] == 7
    page = (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")
    # dots, emboli, noise, rates, three slices
    assert page.count("data:image/png") == 7 and "http" not in page.replace("http-equiv", "")
    assert "The largest loss of an embolus" in page and "not drawn" not in page
    assert (
        "The base trained on with discriminators (other), compared with the base trained on without" in page
    )


def test_few_patients_are_described_only(tmp_path, original):
    folders = [str(evaluation(tmp_path / name, original, 0.3, n_patients=3)) for name in ("a", "b")]
    verdict = main(["--base", folders[0], "--other", folders[1], "--output_dir", str(tmp_path / "out")])
    assert verdict.verdict == "descriptive only" and "n = 3" in verdict.reason


def test_volumes_that_are_gone_leave_the_figures(tmp_path, original):
    folders = [str(evaluation(tmp_path / name, original, 0.3)) for name in ("a", "b")]
    original.unlink()
    main(["--base", folders[0], "--other", folders[1], "--output_dir", str(tmp_path / "out")])
    assert "not drawn" in (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")


def test_folders_that_do_not_compare_are_refused(tmp_path, original):
    one = str(evaluation(tmp_path / "one", original, 0.3))
    other = str(evaluation(tmp_path / "other", original, 0.3, about=ABOUT | {"seed": 5}))
    output = ["--output_dir", str(tmp_path / "out")]
    with pytest.raises(CompareError, match="`seed` must be the same in all folders"):
        main(["--base", one, "--other", other, *output])
    with pytest.raises(CompareError, match="one folder per training seed, got 2 for --base, 1 for --other"):
        main(["--base", one, one, "--other", one, *output])
    (tmp_path / "one" / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(TableError, match="one.metrics.csv: is no table of an evaluation"):
        main(["--base", one, "--other", one, *output])
    assert not (tmp_path / "out").exists()


def test_a_table_reads_back_what_was_written(tmp_path, original):
    folder = evaluation(tmp_path / "one", original, 0.3)
    with (folder / EMBOLI).open() as file:
        assert tuple(next(csv.reader(file))) == EMBOLI_COLUMNS


def _pipe(path):
    path.unlink()
    os.mkfifo(path)


def _other_lengths(path):
    with np.load(path) as arrays:
        np.savez(path, **dict(arrays) | {"noise_recon": np.ones(9)})


def _objects(path):
    with np.load(path) as arrays:
        np.savez(path, **dict(arrays) | {"clot_site": np.array([{}, {}, {}])})


@pytest.mark.parametrize(
    "damage",
    [_pipe, _other_lengths, _objects, lambda path: path.write_bytes(path.read_bytes()[:-200])],
    ids=["pipe", "other lengths", "pickled objects", "truncated"],
)
def test_damaged_curves_are_named_and_nothing_is_written(tmp_path, original, damage, time_limit):
    folders = [str(evaluation(tmp_path / name, original, 0.3)) for name in ("a", "b")]
    damage(tmp_path / "b" / "kept" / "v2.npz")
    with pytest.raises(KeptError, match=r"b.kept.v2\.npz: cannot be read .*evaluate again"):
        main(["--base", folders[0], "--other", folders[1], "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_stem_that_is_a_path_is_refused(tmp_path, original):
    folder = evaluation(tmp_path / "a", original, 0.3)
    with pytest.raises(KeptError, match="`stem` must be letters"):
        read_kept(folder, "../a/kept/v0")


def test_arms_without_volumes_leave_the_figures(tmp_path, original):
    folders = [evaluation(tmp_path / name, original, 0.3, n_patients=1) for name in ("a", "b")]
    volumes = {"v0": {"stem": "v0", "original": str(original), "reconstruction": ""}}
    (folders[1] / "volumes.json").write_text(json.dumps(volumes), encoding="utf-8")
    main(["--base", str(folders[0]), "--other", str(folders[1]), "--output_dir", str(tmp_path / "out")])
    page = (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")
    assert "no reconstruction was kept for other; evaluate with --write_volumes true" in page


BASE_SHA, DATA = "b" * 64, "d" * 16


def about_of(model, gan, **changed):
    """What an evaluation says of an arm that was trained from the base."""
    recipe = {"base": BASE_SHA, "iterations": 1000, "seed": 1, "batch_size": 2, "patch_size": [64, 64, 64]}
    recipe |= {"vessel_ratio": 0.2, "learning_rate": 3e-4, "image_gan_weight": gan, "video_gan_weight": gan}
    return ABOUT | {"model_sha256": model * 64, "recipe": recipe | {"data": DATA} | changed}


@pytest.fixture
def arms(tmp_path, original):
    """Runs a comparison of arms that say how they were trained; returns the doubts on its page."""

    def run(control=None, other=None, *, more=()):
        abouts = {"base": about_of("b", 0.0, base=""), "control": control or about_of("c", 0.0)}
        abouts["other"] = other or about_of("e", 1.0)
        words = []
        for name, about in abouts.items():
            folder = evaluation(tmp_path / name, original, 0.3, n_patients=1, about=about)
            words += [f"--{name}", str(folder)]
        main([*words, "--output_dir", str(tmp_path / "out"), *more])
        return json.loads((tmp_path / "out" / "compare.json").read_text(encoding="utf-8"))["doubts"]

    return run


def test_arms_of_one_base_leave_no_doubt(arms, tmp_path):
    assert arms() == []
    assert "may differ" not in (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("unlike", "message"),
    [
        ({"other": about_of("e", 1.0, base="a" * 64)}, "--other .*other was not trained from --base"),
        ({"other": about_of("e", 1.0, seed=2)}, "`seed` of training must be the same, got 1 in --control"),
        ({"other": about_of("e", 1.0, iterations=900)}, "`iterations` of training .* 900 in --other"),
        ({"other": about_of("e", 1.0, data="f" * 16)}, "`data` of training must be the same"),
        ({"other": about_of("e", 1.0, patch_size=[32] * 3)}, r"`patch_size` .* got \[64, 64, 64\]"),
        ({"other": about_of("e", 0.0)}, "--other .* was trained without discriminators"),
        ({"control": about_of("c", 1.0)}, "--control .* was trained with discriminators"),
    ],
)
def test_arms_that_differ_in_more_than_discriminators_are_refused(arms, unlike, message, tmp_path):
    with pytest.raises(CompareError, match=f"{message}.*--allow_unlike"):
        arms(**unlike)
    assert not (tmp_path / "out").exists()


def test_unlike_arms_that_are_wanted_are_told_on_the_page(arms, tmp_path, capsys):
    (doubt,) = arms(other=about_of("e", 1.0, seed=2), more=["--allow_unlike"])
    assert "`seed`" in doubt and f"warning: {doubt}" in capsys.readouterr().err
    page = (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")
    assert "may differ in more than their discriminators" in page and "`seed` of training" in page


def test_folders_that_do_not_say_how_they_were_trained_raise_a_doubt(arms):
    (doubt,) = arms(other=ABOUT)
    assert doubt.startswith("--other") and doubt.endswith("does not say from which weights it was trained")


def test_one_model_is_no_second_seed(tmp_path, original):
    base = evaluation(tmp_path / "base", original, 0.3, about=about_of("b", 0.0, base=""))
    other = [evaluation(tmp_path / name, original, 0.2, about=about_of("e", 1.0)) for name in ("x", "y")]
    words = ["--base", str(base), str(base), "--other", *map(str, other)]
    with pytest.raises(CompareError, match="`--other` names one model more than once"):
        main([*words, "--output_dir", str(tmp_path / "out")])
