"""Training on several ranks, as torchrun starts it, against one process with the whole batch.

Gradients of another order of sums differ in their last bits, which flips nearest codes after a while and grows
where discriminators are at work; so both sides have the same micro-batch, and the runs are short.
"""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from bundle.data.volumes.phantom import write_phantom

CONFIGS = {
    "base": ["configs/train.yaml", "configs/smoke.yaml"],
    "adversarial": ["configs/train.yaml", "configs/train_with_discriminator.yaml", "configs/smoke.yaml"],
}
SETTINGS = {
    "patch_size": [16, 16, 16],
    "batch_size": 4,
    "micro_batch_size": 1,
    "log_interval": 1,
    "max_epochs": 1,
    "num_workers": 0,
}
BASE = {"epoch_length": 24, "checkpoint_interval": 12}
ADVERSARIAL = {"epoch_length": 8, "discriminator_iter_start": 4, "patch_size": [24, 24, 24]}
STABILISERS = {"r1_gamma": 1.0, "lecam_weight": 0.1, "spectral_norm": True, "discriminator_pretrain_iters": 1}
# A network of a few thousand parameters; and what every rank holds at the end.
OVERLAY = {
    "network_def": {
        "_target_": "bundle.networks.vqgan.VQGAN",
        "preset": {
            "_target_": "bundle.networks.vqgan.Preset",
            "channels": "$(4, 8)",
            "num_res_layers": 1,
            "tail_channels": 4,
        },
        "quantizer": {
            "_target_": "bundle.networks.quantizer.EMACodebook",
            "num_embeddings": 32,
            "embedding_dim": 8,
        },
    },
    "num_embeddings": 32,
    "+run": [
        "$torch.save(@training_state.state_dict(@train#trainer),"
        " f\"{@output_dir}/rank_{torch.os.environ.get('RANK', 0)}.pt\")"
    ],
}


@pytest.fixture(scope="module")
def train(python, tmp_path_factory):
    """Trains in a new folder on so many ranks; one rank is one process without a launcher."""
    overlay = tmp_path_factory.mktemp("overlay") / "tiny.json"
    overlay.write_text(json.dumps(OVERLAY), encoding="utf-8")

    def run(kind, ranks, dataset, folder=None, **settings):
        folder = folder or tmp_path_factory.mktemp("run") / "out"
        files = [*CONFIGS[kind], str(overlay)] + (["configs/multi_gpu_train.yaml"] if ranks > 1 else [])
        words = ["run", "--config_file", str(files)]
        for name, value in (SETTINGS | settings | {"dataset_dir": dataset, "output_dir": folder}).items():
            words += [f"--{name}", str(value)]
        for ended in python.on_ranks(ranks, "monai.bundle", *words):
            ended.expect_success()
        return folder

    return run


@pytest.fixture(scope="module")
def datalist(tmp_path_factory):
    """Two volumes to train on, and so many to validate on."""
    folder = tmp_path_factory.mktemp("data")
    for number in range(5):
        write_phantom(folder / f"v{number}.nii.gz", (24, 24, 20), np.diag([1.0, 1.0, 2.0, 1.0]), seed=number)

    def write(validation):
        parts = {"training": range(2), "validation": range(2, 2 + validation)}
        content = {
            part: [{"image": f"v{number}.nii.gz", "patient": f"p{number}"} for number in numbers]
            for part, numbers in parts.items()
        }
        path = folder / f"{validation}.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="module")
def base(train, datalist):
    """The base run with three validation volumes on 1, 2 and 4 ranks."""
    return {ranks: train("base", ranks, datalist(3), **BASE) for ranks in (1, 2, 4)}


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


def assert_close_curves(folder, expected, relative, only=""):
    found, wanted = curves_of(folder), curves_of(expected)
    assert found.keys() == wanted.keys()
    for name in (name for name in wanted if name.startswith(only)):
        assert found[name] == pytest.approx(wanted[name], rel=relative, abs=1e-6, nan_ok=True), name


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_base_run_on_ranks_is_that_of_one_process_with_the_whole_batch(base, ranks):
    assert_close_curves(base[ranks], base[1], 1e-5)
    found, expected = (content_of(base[number] / "checkpoints" / "last.pt")["model"] for number in (ranks, 1))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_three_validation_volumes_give_the_figures_of_one_process(base):
    assert_close_curves(base[2], base[1], 1e-5, only="val/")
    assert len([value for value in curves_of(base[1])["val/psnr"] if not math.isnan(value)]) == 1


def test_an_adversarial_run_across_the_gate_and_one_validation_volume_are_those_of_one_process(adversarial):
    assert_close_curves(adversarial[2], adversarial[1], 1e-4)
    assert not all(math.isnan(value) for value in curves_of(adversarial[2])["train/disc_loss"])


@pytest.mark.parametrize("runs", ["base", "adversarial"])
def test_all_ranks_hold_the_same_weights_moments_codes_and_random_states_to_the_last_bit(request, runs):
    folder = request.getfixturevalue(runs)[2]
    first, second = (content_of(folder / f"rank_{rank}.pt") for rank in range(2))
    for part in ("model", "discriminators", "optimizers", "schedules", "trainer", "random"):
        torch.testing.assert_close(first[part], second[part], rtol=0, atol=0)


def test_rank_0_alone_writes(base):
    names = {path.name for path in base[2].iterdir()}
    others = {"checkpoints", "metrics.csv", "pictures", "run.json", "tensorboard", "training.log"}
    assert names == {"rank_0.pt", "rank_1.pt", *others}
    assert len(list((base[2] / "tensorboard").iterdir())) == 1
    assert json.loads((base[2] / "run.json").read_text(encoding="utf-8"))["status"] == "finished"


@pytest.mark.parametrize("ranks", [2, 1])
def test_a_run_of_two_ranks_goes_on_bit_by_bit_on_two_and_as_closely_as_ever_on_one(
    base, train, datalist, tmp_path, ranks
):
    half = base[2] / "checkpoints" / "previous_1.pt"
    resumed = train("base", ranks, datalist(3), tmp_path / "out", resume_from_checkpoint=half, **BASE)

    found, expected = (content_of(folder / "checkpoints" / "last.pt") for folder in (resumed, base[2]))
    assert content_of(half)["trainer"]["iteration"] == 12
    exactly = {"rtol": 0, "atol": 0} if ranks == 2 else {"rtol": 1e-5, "atol": 1e-5}
    for part in ("model", "optimizers", "schedules", "trainer"):
        torch.testing.assert_close(found[part], expected[part], **exactly)
    torch.testing.assert_close(found["random"], expected["random"], rtol=0, atol=0)


@pytest.mark.ranks
def test_so_is_a_run_with_r1_lecam_and_spectral_norm(train, datalist):
    runs = [train("adversarial", ranks, datalist(1), **ADVERSARIAL, **STABILISERS) for ranks in (1, 2)]
    assert_close_curves(runs[1], runs[0], 1e-4)
