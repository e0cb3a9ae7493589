"""Settings and checkpoints that cannot work: one line that names them, an exit code, and nothing written."""

import pytest
import torch

from bundle.checkpoints.file import network_settings, write_checkpoint

UNKNOWN = "got `learning_rat` (did you mean `learning_rate`"


def test_an_unknown_setting_is_refused_by_monai_run_with_the_nearest_name(python, dataset, out):
    done = python.run_cold("base", dataset_dir=dataset, output_dir=out, learning_rat=0.1)

    done.expect_refusal(UNKNOWN, output_dir=out)


def test_an_unknown_setting_is_refused_by_the_front_door(python, dataset, out):
    words = ["--dataset_dir", str(dataset), "--output_dir", str(out), "--learning_rat", "0.1"]

    done = python("scripts.run", "--config_file", "configs/train.yaml", *words)

    done.expect_refusal(UNKNOWN, output_dir=out)


def test_inference_without_a_checkpoint_never_runs(python, dataset, tmp_path, out):
    done = python.run("inference", dataset_dir=dataset, output_dir=out, ckpt_path=tmp_path / "no.pt")

    done.expect_refusal(f"error: {tmp_path / 'no.pt'}: no such checkpoint", output_dir=out)


@pytest.mark.parametrize(
    ("here", "advice"),
    [
        ({"preset": "default"}, "--preset lite"),
        ({"quantizer": "fsq"}, "--quantizer ema"),
        ({"num_embeddings": 128}, "--num_embeddings 64"),
        ({"hu_max": 600.0}, "--hu_max 1000.0"),
    ],
)
def test_a_checkpoint_of_another_network_or_window_is_refused_with_the_override_that_fits(
    python, dataset, checkpoint, out, here, advice
):
    done = python.run("inference", dataset_dir=dataset, output_dir=out, ckpt_path=checkpoint, **here)

    (name,) = here
    done.expect_refusal(
        f"error: {checkpoint}: was trained with `{name}`",
        f"use it with {advice}",
        output_dir=out,
    )


@pytest.mark.parametrize("setting", ["ckpt_path", "init_from", "resume_from_checkpoint"])
def test_a_lightning_checkpoint_is_called_one(python, dataset, tmp_path, out, setting):
    path = tmp_path / "epoch=3.ckpt"
    torch.save({"state_dict": {"encoder.weight": torch.ones(1)}, "pytorch-lightning_version": "2.1"}, path)
    workflow = "inference" if setting == "ckpt_path" else "base"

    done = python.run(workflow, dataset_dir=dataset, output_dir=out, **{setting: path})

    done.expect_refusal(
        f"error: {path}: ", "Lightning", "another network", "cannot be loaded", output_dir=out
    )


@pytest.fixture(scope="module")
def base_checkpoint(network, tmp_path_factory):
    """As a base run leaves it, as far as a resuming run looks at it before it starts."""
    path = tmp_path_factory.mktemp("base") / "checkpoints" / "last.pt"
    content = {"model": network.state_dict(), "network": network_settings("lite", "ema", 64, -1000, 1000)}
    trainer = {"iteration": 2, "epoch_length": 2, "max_epochs": 1}
    write_checkpoint(
        path, {**content, "discriminators": {}, "optimizers": {"generator": {}}, "trainer": trainer}
    )
    return path


def test_a_base_checkpoint_cannot_be_resumed_adversarially_but_started_from(
    python, dataset, base_checkpoint, out
):
    settings = {"dataset_dir": dataset, "output_dir": out, "discriminator_iter_start": 1}

    done = python.run("adversarial", **settings, resume_from_checkpoint=base_checkpoint)

    done.expect_refusal(
        f"error: {base_checkpoint}: its discriminators are not those of this run",
        f"use --init_from {base_checkpoint} instead of --resume_from_checkpoint",
        output_dir=out,
    )


PERCEPTUAL = {"perceptual_weight": 0.1, "discriminator_iter_start": 1}


def test_a_missing_backbone_file_is_named_with_both_ways_out(python, dataset, tmp_path, out):
    missing = tmp_path / "vgg16-397923af.pth"
    settings = {"dataset_dir": dataset, "output_dir": out, "perceptual_weights_path": missing}

    done = python.run("adversarial", **settings, **PERCEPTUAL)

    ways_out = ("--perceptual_weights_path FILE", "--perceptual_weight 0")
    done.expect_refusal(f"error: {missing}: no such file", *ways_out, output_dir=out)


def test_without_internet_and_cache_the_missing_backbone_is_an_error_before_training(
    python, dataset, tmp_path, out
):
    words = ["--config_file", "['configs/train.yaml','configs/train_with_discriminator.yaml']"]
    words += ["--dataset_dir", str(dataset), "--output_dir", str(out), "--preset", "lite"]
    nowhere = {name: "http://127.0.0.1:9" for name in ("https_proxy", "HTTPS_PROXY")}

    done = python("monai.bundle", "run", *words, **nowhere, TORCH_HOME=str(tmp_path / "torch"), no_proxy="")

    ways_out = ("--perceptual_weights_path FILE", "--perceptual_weight 0")
    done.expect_refusal("vgg16-397923af.pth: LPIPS backbone weights are missing", *ways_out, output_dir=out)
    assert not [path for path in (tmp_path / "torch").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"discriminator_iter_start": 2}, "`discriminator_iter_start` + `discriminator_pretrain_iters` must"),
        (
            {"patch_size": [24, 24, 30]},
            "`patch_size` must be three multiples of 4, each at least 4, got [24, 24, 30]",
        ),
        ({"micro_batch_size": 0}, "`micro_batch_size` must be a whole number from 1, got 0"),
        ({"max_patients": 0}, "`max_patients` must be a whole number from 1, or null, got 0"),
    ],
)
def test_a_setting_that_cannot_work_is_named_before_anything_is_written(
    python, dataset, out, settings, message
):
    valid = {"dataset_dir": dataset, "output_dir": out, "discriminator_iter_start": 1}

    done = python.run("adversarial", **valid | settings)

    done.expect_refusal(message, output_dir=out)
