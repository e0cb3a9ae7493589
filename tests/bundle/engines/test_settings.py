from pathlib import Path

import pytest
import yaml
from monai.bundle import ConfigParser

from bundle.engines.settings import _take_switches_as_meant, check_training_settings, total_iterations
from bundle.run.rules import SettingsError

CONFIG = Path(__file__).resolve().parents[3] / "configs" / "train.yaml"
GOOD = yaml.safe_load(CONFIG.read_text(encoding="utf-8")) | {
    "output_dir": "outputs/run",
    "patch_size": [24, 48, 24],
    "max_epochs": 3,
    "epoch_length": 10,
    "discriminator_iter_start": 20,
    "discriminator_pretrain_iters": 5,
    "image_gan_weight": 1.0,
    "loss_margin": 4,
}
NO_GAN = {"image_gan_weight": 0.0}
WITH_DISC = {"output_dir": "outputs/vqgan_patches_with_disc"}


@pytest.mark.parametrize(("max_iterations", "total"), [(None, 30), (7, 7), (30, 30), (100, 30)])
def test_a_run_ends_at_whichever_limit_comes_first(max_iterations, total):
    assert total_iterations(3, 10, max_iterations) == total


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"discriminator_pretrain_iters": 9},
        NO_GAN | {"patch_size": [4, 4, 4], "loss_margin": 0},
        NO_GAN | {"discriminator_iter_start": 10_000},
        {"max_iterations": 26},
        {"foreground_ratio": 0.5, "vessel_ratio": 0.5},
        WITH_DISC,
        NO_GAN | WITH_DISC | {"video_gan_weight": 0.5},
        NO_GAN | {"output_dir": "/data/old_with_disc/base"},
    ],
)
def test_settings_that_work_together_pass(changes):
    check_training_settings(GOOD | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": [24, 24, 20]}, r"at least 24 on each side for discriminators, got \[24, 24, 20\]"),
        ({"preset": None}, "`preset` must be given for training, got null; set e.g. --preset default"),
        ({"hu_max": None}, "`hu_max` must be given for training, got null; set e.g. --hu_max 1000.0"),
        ({"loss_margin": 12}, "`loss_margin` must be below half of the smallest patch side, got 12"),
        (NO_GAN | {"perceptual_weight": 0.1, "discriminator_iter_start": 10_000}, "LPIPS would"),
        ({"vessel_ratio": 0.6}, r"`foreground_ratio` \+ `vessel_ratio` must be at most 1, got 1.4"),
        ({"turn_probability": 0.5}, "two equal first sides for `turn_probability` above 0"),
        ({"discriminator_iter_start": 25}, "below the run's 30 iterations .* got 30: .* train longer"),
        ({"max_iterations": 25}, "below the run's 25 iterations .* got 25"),
        (NO_GAN | WITH_DISC, "_with_disc, got outputs/vqgan_patches_with_disc with `image_gan_weight` 0"),
    ],
)
def test_settings_that_cannot_work_together_are_refused_by_name(changes, message):
    with pytest.raises(SettingsError, match=message):
        check_training_settings(GOOD | changes)


@pytest.mark.parametrize(
    ("typed", "meant"), [("true", True), ("false", False), ("False", False), (True, True)]
)
def test_true_and_false_of_the_command_line_are_what_yaml_reads_them_as(typed, meant):
    """MONAI hands over text, and the text "false" is not empty: it switched nothing off."""
    parser = ConfigParser({"amp": typed, "preset": "true", "used": "$@amp is True"})
    _take_switches_as_meant(parser)

    assert (parser["amp"], parser["preset"]) == (meant, "true")
    assert parser.get_parsed_content("used") is meant


@pytest.mark.parametrize(("trains_vqgan", "n_told"), [(False, 1), (True, 0)])  # there the preflight tells it
def test_a_command_that_uses_one_of_several_tasks_is_told_so_once(monkeypatch, caplog, trains_vqgan, n_told):
    for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "4")
    step = {"_target_": "bundle.engines.settings.check_settings"}

    ConfigParser({"trains_vqgan": trains_vqgan, "step": step}).get_parsed_content("step")

    assert caplog.text.count("asked for 4 tasks, but one process was started; ask for") == n_told
