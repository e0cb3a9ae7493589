"""Training on several ranks, as torchrun starts it, against one process with the whole batch.

Sums in another order differ in their last bits, which flips a nearest code after a while. The base run takes
no notice of one; discriminators multiply it in every iteration, since they see the nearly flat pictures of a
fresh network through instance norm. So both sides have the same micro-batch, and the gate opens late.
"""

import csv
import json
import math
from pathlib import Path

import pytest
import torch

BASE = {"epoch_length": 24, "checkpoint_interval": 12}
ADVERSARIAL = {
    "epoch_length": 8,
    "discriminator_iter_start": 6,
    "patch_size": [24, 24, 24],
    "learning_rate": 1e-4,
}
STABILISERS = {
    "r1_gamma": 1.0,
    "lecam_weight": 0.1,
    "spectral_norm": True,
    "discriminator_iter_start": 5,
    "discriminator_pretrain_iters": 1,
}


@pytest.fixture(scope="module")
def train(start_on_ranks, tmp_path_factory):
    """Trains in a new folder to the end."""

    def run(kind, ranks, dataset, folder=None, **settings):
        folder = folder or tmp_path_factory.mktemp("run") / "out"
        for ended in start_on_ranks(kind, ranks, folder, dataset_dir=dataset, **settings):
            ended.expect_success()
        return folder

    return run


@pytest.fixture(scope="module")
def base(train, datalist):
    """The base run with three validation volumes on 1 and 2 ranks."""
    return {ranks: train("base", ranks, datalist(3), **BASE) for ranks in (1, 2)}


@pytest.fixture(scope="module")
def adversarial(train, datalist):
    """The run across the gate with one validation volume on 1 and 2 ranks."""
    return {ranks: train("adversarial", ranks, datalist(1), **ADVERSARIAL) for ranks in (1, 2)}


def curves_of(folder: Path) -> dict[str, list[float]]:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name] or math.nan) for row in rows] for name in rows[0]}


def content_of(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def differences(found, expected, tolerance=0.0, name=""):
    """Names of the parts of two states that differ by more than this."""
    if isinstance(expected, dict):
        pairs = [(f"{name}.{key}", found[key], value) for key, value in expected.items()]
        return [told for part, mine, other in pairs for told in differences(mine, other, tolerance, part)]
    if isinstance(expected, list | tuple):
        return differences(dict(enumerate(found)), dict(enumerate(expected)), tolerance, name)
    if torch.is_tensor(expected) and expected.is_floating_point():
        is_same = torch.allclose(found, expected, rtol=tolerance, atol=tolerance)
    else:
        is_same = torch.equal(found, expected) if torch.is_tensor(expected) else found == expected
    return [] if is_same else [name]


def assert_close_curves(folder, expected, relative, only=""):
    found, wanted = curves_of(folder), curves_of(expected)
    assert found.keys() == wanted.keys()
    for name in (name for name in wanted if name.startswith(only)):
        assert found[name] == pytest.approx(wanted[name], rel=relative, abs=1e-6, nan_ok=True), name


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.ranks)])
def test_a_base_run_on_ranks_is_that_of_one_process_with_the_whole_batch(base, train, datalist, ranks):
    folder = base[2] if ranks == 2 else train("base", ranks, datalist(3), **BASE)
    assert_close_curves(folder, base[1], 1e-5)
    found, expected = (content_of(run / "checkpoints" / "last.pt")["model"] for run in (folder, base[1]))
    assert differences(found, expected, 1e-5) == []


def test_three_validation_volumes_give_the_figures_of_one_process(base):
    assert_close_curves(base[2], base[1], 1e-5, only="val/")
    assert len([value for value in curves_of(base[1])["val/psnr"] if not math.isnan(value)]) == 1


@pytest.mark.ranks
def test_an_adversarial_run_across_the_gate_and_one_validation_volume_are_those_of_one_process(adversarial):
    assert_close_curves(adversarial[2], adversarial[1], 1e-4)
    assert not all(math.isnan(value) for value in curves_of(adversarial[2])["train/disc_loss"])


@pytest.mark.parametrize("runs", ["base", pytest.param("adversarial", marks=pytest.mark.ranks)])
def test_all_ranks_hold_the_same_weights_moments_codes_and_random_states_to_the_last_bit(request, runs):
    folder = request.getfixturevalue(runs)[2]
    first, second = (content_of(folder / f"rank_{rank}.pt") for rank in range(2))
    parts = ("model", "discriminators", "optimizers", "schedules", "trainer", "random")
    assert [told for part in parts for told in differences(first[part], second[part], name=part)] == []


def test_rank_0_alone_writes(base):
    names = {path.name for path in base[2].iterdir()}
    others = {"checkpoints", "metrics.csv", "pictures", "run.json", "tensorboard", "training.log"}
    assert names == {"rank_0.pt", "rank_1.pt", *others}
    assert len(list((base[2] / "tensorboard").iterdir())) == 1
    assert json.loads((base[2] / "run.json").read_text(encoding="utf-8"))["status"] == "finished"


@pytest.mark.parametrize("ranks", [2, pytest.param(1, marks=pytest.mark.ranks)])
def test_a_run_of_two_ranks_goes_on_bit_by_bit_on_two_and_as_closely_as_ever_on_one(
    base, train, datalist, tmp_path, ranks
):
    half = base[2] / "checkpoints" / "previous_1.pt"
    resumed = train("base", ranks, datalist(3), tmp_path / "out", resume_from_checkpoint=half, **BASE)

    found, expected = (content_of(folder / "checkpoints" / "last.pt") for folder in (resumed, base[2]))
    assert content_of(half)["trainer"]["iteration"] == 12
    parts = {"model": 1e-5, "optimizers": 1e-5, "schedules": 0, "trainer": 0, "random": 0}
    for part, tolerance in parts.items():
        assert differences(found[part], expected[part], 0 if ranks == 2 else tolerance, part) == []


def test_processes_that_would_each_do_the_whole_work_are_refused_in_one_line(python, datalist, out):
    launcher = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}
    words = ["run", "--config_file", "configs/train.yaml", "--dataset_dir", str(datalist(1))]
    ended = python("monai.bundle", *words, "--output_dir", str(out), **launcher)
    ended.expect_refusal("list configs/multi_gpu_train.yaml too, or start one process", output_dir=out)


def test_a_batch_that_ranks_cannot_share_is_refused_before_they_meet(start_on_ranks, datalist, out):
    for ended in start_on_ranks("base", 2, out, dataset_dir=datalist(1), batch_size=5):
        ended.expect_refusal("`batch_size` must be a multiple of the 2 processes", output_dir=out)


@pytest.mark.ranks
def test_so_is_a_run_with_r1_lecam_and_spectral_norm(train, datalist):
    runs = [train("adversarial", ranks, datalist(1), **(ADVERSARIAL | STABILISERS)) for ranks in (1, 2)]
    assert_close_curves(runs[1], runs[0], 1e-4)
