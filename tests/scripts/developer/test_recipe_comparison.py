import csv

import numpy as np
import pytest
import torch

from bundle.data.volumes.phantom import write_phantom
from scripts.developer.recipe_comparison import RECIPES, draw_patches, main, rate


@pytest.fixture
def volume(tmp_path):
    path = tmp_path / "ct.nii.gz"
    write_phantom(path, (40, 40, 32), np.eye(4))
    return str(path)


def test_a_row_per_recipe_seed_mark_and_volume_before_and_behind_the_gate(tmp_path, volume):
    table = tmp_path / "rows.csv"
    sizes = ["--patch_size", "24", "--batch_size", "1", "--num_embeddings", "16", "--marks"]
    lengths = ["--iterations", "1", "--adversarial", "1", "--seeds", "3", "--recipes", "base", "betas"]
    main(["--train", volume, "--held_out", volume, "--output", str(table), *lengths, *sizes])

    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["recipe"], row["iteration"], row["weights"]) for row in rows] == [
        (recipe, iteration, weights)
        for recipe in ("base", "betas")
        for iteration, weights in (("1", "trained"), ("2", "trained"), ("2", "averaged"))
    ]
    base, betas = rows[:3], rows[3:]
    assert base[0]["l1"] == betas[0]["l1"]  # the same first weights and patch
    assert base[1]["psnr"] != base[0]["psnr"]  # the discriminators' terms reach the generator
    assert all(float(row["psnr"]) > 0 and row["seed"] == "3" for row in rows)


def test_patches_come_from_the_seed_alone_and_hold_more_than_air():
    volumes = [torch.full((20, 20, 20), -1000, dtype=torch.int16)]
    volumes[0][:, :10] = 0
    batches = [next(draw_patches(volumes, seed, 12, 4)) for seed in (0, 0, 1)]
    assert torch.equal(batches[0], batches[1]) and not torch.equal(batches[0], batches[2])
    assert batches[0].shape == (4, 1, 12, 12, 12)
    assert (batches[0].mean(dim=(1, 2, 3, 4)) > -0.95).all()


def test_the_rate_warms_up_and_ends_at_two_percent():
    assert rate(1, 100, 10) == pytest.approx(0.1)
    assert rate(100, 100, 10) == pytest.approx(0.02, abs=1e-3)
    assert {recipe.learning_rate for recipe in RECIPES.values()} > {7e-4}
