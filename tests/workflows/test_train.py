"""Three runs, one after the other: base, adversarial from its weights across the gate, that one resumed."""

import csv
import json
from pathlib import Path

import pytest
import torch

GATE = 1
LENGTH = 2  # iterations per epoch
ADVERSARIAL = {"train/gen_loss", "train/disc_loss", "train/gan_feat_loss"}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def base(python, dataset, outputs):
    done = python.run("base", dataset_dir=dataset, output_dir=outputs / "base")
    done.expect_success()
    return outputs / "base"


@pytest.fixture(scope="module")
def adversarial_settings(dataset, outputs):
    return {
        "dataset_dir": dataset,
        "output_dir": outputs / "disc",
        "epoch_length": LENGTH,
        "discriminator_iter_start": GATE,
    }


@pytest.fixture(scope="module")
def adversarial(python, base, adversarial_settings):
    """The run from the weights of the base run; its log ends up in the folder, its state is read here."""
    start = base / "checkpoints" / "last.pt"
    python.run("adversarial", **adversarial_settings, init_from=start).expect_success()
    return adversarial_settings["output_dir"]


@pytest.fixture(scope="module")
def before_resuming(adversarial):
    return {"rows": rows_of(adversarial), "checkpoint": load(adversarial / "checkpoints" / "last.pt")}


@pytest.fixture(scope="module")
def resumed(python, adversarial, before_resuming, adversarial_settings):
    last = adversarial / "checkpoints" / "last.pt"
    python.run(
        "adversarial", **adversarial_settings | {"max_epochs": 2}, resume_from_checkpoint=last
    ).expect_success()
    return adversarial


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def record_of(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def training_rows(rows: list[dict[str, str]]) -> dict[int, set[str]]:
    """Names of the curves that have a value, by iteration; rows of validation left out."""
    return {
        int(row["iteration"]): {name for name, value in row.items() if value}
        for row in rows
        if row["train/recon_loss"]
    }


def test_a_run_leaves_what_the_readme_promises(base):
    files = {path.relative_to(base).as_posix() for path in base.rglob("*") if path.is_file()}

    assert {"training.log", "metrics.csv", "run.json"} <= files
    assert {"checkpoints/last.pt", "checkpoints/best_1.pt"} <= files
    assert [name for name in files if name.startswith("tensorboard/events.")]
    assert [name for name in files if name.startswith("pictures/") and name.endswith(".png")]
    assert not [name for name in files if "partial" in name or "/." in name]


def test_the_record_says_how_it_ended_with_which_config_and_figures(base, dataset):
    record = record_of(base)

    assert record["status"] == "finished"
    assert record["config_files"] == ["configs/train.yaml", "configs/smoke.yaml"]
    assert record["config"]["dataset_dir"] == str(dataset)
    assert record["network"]["preset"] == "lite"
    assert record["network"]["num_embeddings"] == record["overrides"]["num_embeddings"] == 64
    last = next(row for row in rows_of(base) if row["val/psnr"])
    assert record["figures"]["val/psnr"] == pytest.approx(float(last["val/psnr"]))
    assert record["figures"]["iteration"] == 2


def test_a_base_run_has_no_adversarial_curve_and_no_discriminator(base):
    curves = set().union(*training_rows(rows_of(base)).values())

    assert "train/recon_loss" in curves
    assert not curves & (ADVERSARIAL | {"train/perceptual_loss"})
    assert load(base / "checkpoints" / "last.pt")["discriminators"] == {}


def test_the_log_counts_what_the_window_clips_and_says_which_patient_validates(base):
    log = (base / "training.log").read_text(encoding="utf-8")

    assert "below -1000 HU and 0 (0.00 %) above 1000 HU" in log
    assert "epoch 1 iteration 2  " in log
    assert "val/psnr" in log


def test_adversarial_curves_begin_at_the_first_iteration_after_the_gate(adversarial, before_resuming):
    curves = training_rows(before_resuming["rows"])

    assert {n: bool(names & ADVERSARIAL) for n, names in curves.items()} == {1: False, 2: True}
    assert curves[GATE + 1] >= ADVERSARIAL
    assert not any("train/perceptual_loss" in names for names in curves.values())


def test_an_adversarial_run_starts_from_the_base_weights_with_its_counters_at_zero(
    base, adversarial, before_resuming
):
    log = (adversarial / "training.log").read_text(encoding="utf-8")
    start = load(base / "checkpoints" / "last.pt")

    assert f"{base / 'checkpoints' / 'last.pt'}: {len(start['model'])} tensors matched" in log
    assert before_resuming["checkpoint"]["trainer"]["iteration"] == LENGTH
    assert before_resuming["checkpoint"]["schedules"]["discriminator"]["last_epoch"] == LENGTH - GATE
    assert before_resuming["checkpoint"]["model"].keys() == start["model"].keys()


def test_a_resumed_run_counts_on_with_open_gate_and_keeps_its_curves(resumed, before_resuming):
    rows = rows_of(resumed)
    curves = training_rows(rows)

    assert rows[: len(before_resuming["rows"])] == before_resuming["rows"]
    assert sorted(curves) == [1, 2, 3, 4]
    assert all(curves[iteration] >= ADVERSARIAL for iteration in (3, 4))
    assert load(resumed / "checkpoints" / "last.pt")["trainer"]["iteration"] == 2 * LENGTH


def test_a_resumed_run_keeps_the_record_of_its_first_start(resumed):
    record = record_of(resumed)

    assert record["status"] == "finished"
    assert record["figures"]["iteration"] == 2 * LENGTH
    assert [start["figures"]["iteration"] for start in record["earlier_starts"]] == [LENGTH]


def test_best_checkpoints_are_ranked_over_both_starts(resumed):
    bests = [load(path) for path in sorted((resumed / "checkpoints").glob("best_*.pt"))]
    validated = {int(row["iteration"]): float(row["val/psnr"]) for row in rows_of(resumed) if row["val/psnr"]}
    ranked = sorted(validated, key=lambda iteration: -validated[iteration])

    behind_the_gate = [iteration for iteration in ranked if iteration > 0]

    assert sorted(validated) == [0, LENGTH, 2 * LENGTH]  # 0 is the model that it started from
    assert [best["trainer"]["iteration"] for best in bests] == behind_the_gate + [0]


def test_every_validation_leaves_a_picture(resumed):
    pictures = sorted(path.name for path in (resumed / "pictures").glob("*.png"))

    assert pictures == [f"ct_iteration_000000{iteration}.png" for iteration in (0, LENGTH, 2 * LENGTH)]


def test_a_second_run_into_the_same_folder_is_refused_and_changes_nothing(python, base, dataset, listing):
    before = listing(base)

    done = python.run("base", dataset_dir=dataset, output_dir=base)

    assert done.code != 0
    assert done.last_line.startswith(f"error: {base}: holds the checkpoints of another run")
    assert "Traceback" not in done.output
    assert listing(base) == before


@pytest.fixture(scope="module")
def again(python, base, dataset, outputs):
    """The base run once more, unpacked anew, its device given as a plain word."""
    settings = {"dataset_dir": dataset, "cache_dir": outputs / "another_cache", "device": "cpu"}
    python.run("base", **settings, output_dir=outputs / "again").expect_success()
    return outputs / "again"


def test_a_seed_gives_the_same_run_twice(base, again):
    model, same = (load(run / "checkpoints" / "last.pt")["model"] for run in (base, again))

    assert all(torch.equal(tensor, same[name]) for name, tensor in model.items())


def test_the_device_may_be_a_plain_word(again):
    assert record_of(again)["device"] == "cpu"
