import pytest

from bundle.engines.settings import SettingsError, check_training_settings, total_iterations

GOOD = {
    "patch_size": [24, 48, 24],
    "batch_size": 4,
    "micro_batch_size": 2,
    "max_epochs": 3,
    "epoch_length": 10,
    "max_iterations": None,
    "discriminator_iter_start": 20,
    "discriminator_pretrain_iters": 5,
    "weights": {"l1_weight": 1, "image_gan_weight": 1.0, "video_gan_weight": 0.0},
    "hu_min": -1000.0,
    "hu_max": 1000,
    "loss_margin": 4,
    "sampling": {
        "patch_sampling": "random",
        "foreground_ratio": 0.5,
        "vessel_ratio": 0.5,
        "flip_probability": 0.5,
        "turn_probability": 0.0,
    },
    "steps": {"learning_rate": 1e-4, "discriminator_learning_rate": 1e-4, "gradient_clip": 1.0},
}


def sampling(**changes):
    return {"sampling": GOOD["sampling"] | changes}


def steps(**changes):
    return {"steps": GOOD["steps"] | changes}


NO_GAN = {"l1_weight": 1.0, "image_gan_weight": 0.0, "video_gan_weight": 0.0}


@pytest.mark.parametrize(("max_iterations", "total"), [(None, 30), (7, 7), (30, 30), (100, 30)])
def test_a_run_ends_at_whichever_limit_comes_first(max_iterations, total):
    assert total_iterations(3, 10, max_iterations) == total


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"discriminator_pretrain_iters": 9},
        {"weights": NO_GAN, "patch_size": [4, 4, 4], "loss_margin": 0},
        {"weights": NO_GAN, "discriminator_iter_start": 10_000},
        {"max_iterations": 26},
        steps(gradient_clip=None),
    ],
)
def test_settings_that_work_pass(changes):
    check_training_settings(**GOOD | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be a whole number from 1, got 0"),
        ({"micro_batch_size": 1.5}, "`micro_batch_size` must be a whole number from 1, got 1.5"),
        ({"max_epochs": "3"}, "`max_epochs` must be a whole number from 1, got '3'"),
        ({"epoch_length": -1}, "`epoch_length` must be a whole number from 1, got -1"),
        ({"max_iterations": 0}, "`max_iterations` must be a whole number from 1, got 0"),
        ({"discriminator_iter_start": -1}, "`discriminator_iter_start` must be a whole number from 0"),
        ({"discriminator_pretrain_iters": 0.5}, "`discriminator_pretrain_iters` must be a whole number"),
        ({"weights": NO_GAN | {"l1_weight": -1}}, "`l1_weight` must be a number from 0, got -1"),
        ({"weights": NO_GAN | {"l1_weight": "1e-1"}}, "`l1_weight` must be a number from 0, got '1e-1'"),
        ({"hu_min": 1000}, "`hu_min` must be a number below `hu_max`, got 1000 and 1000"),
        ({"hu_max": None}, "`hu_min` must be a number below `hu_max`, got -1000.0 and None"),
        ({"patch_size": [24, 24]}, "three multiples of 4, each at least 24"),
        ({"patch_size": [24, 24, 26]}, r"multiples of 4, .* got \[24, 24, 26\]"),
        ({"patch_size": [24, 24, 20]}, r"each at least 24, got \[24, 24, 20\]"),
        ({"patch_size": [0, 4, 4], "weights": NO_GAN}, "each at least 4"),
        ({"patch_size": 24}, "`patch_size` must hold three"),
        ({"loss_margin": 12}, "`loss_margin` must be below half of the smallest patch side, got 12"),
        ({"loss_margin": -1}, "`loss_margin` must be a whole number from 0, got -1"),
        ({"weights": NO_GAN | {"perceptual_weight": 0.1}, "discriminator_iter_start": 10_000}, "LPIPS would"),
        (steps(learning_rate=-1), "`learning_rate` must be a number above 0, got -1"),
        (steps(gradient_clip=0), "`gradient_clip` must be a number above 0, got 0; not to clip"),
        (sampling(patch_sampling="net"), "`patch_sampling` must be one of random, grid, got 'net'"),
        (sampling(flip_probability=1.5), "`flip_probability` must be a number from 0 to 1, got 1.5"),
        (sampling(vessel_ratio=0.6), r"`foreground_ratio` \+ `vessel_ratio` must be at most 1, got 1.1"),
        (sampling(turn_probability=0.5), "two equal first sides for `turn_probability` above 0"),
        ({"discriminator_iter_start": 25}, "below the run's 30 iterations .* got 30: .* train longer"),
        ({"max_iterations": 25}, "below the run's 25 iterations .* got 25"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(changes, message):
    with pytest.raises(SettingsError, match=message):
        check_training_settings(**GOOD | changes)
