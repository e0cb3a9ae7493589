"""Holds the advice for runs that go wrong, for the log, `run.json` and docs/troubleshooting.md alike."""

from typing import NamedTuple


class Advice(NamedTuple):
    """One row of the table in docs/troubleshooting.md: what happens, and what to change."""

    what: str
    change: str


ADVICE = {
    "non_finite": Advice(
        "loss or gradient is not finite",
        "lower `learning_rate` or `gradient_clip`; look for damaged volumes; `--amp false` tells whether "
        "bf16 is to blame",
    ),
    "discriminator_explodes": Advice(
        "discriminator loss explodes",
        "lower `image_gan_weight` and `video_gan_weight`, or `discriminator_learning_rate`; open the gate "
        "later; `--r1_gamma 10.0` or `--spectral_norm true` tames the discriminators",
    ),
    "discriminator_dead": Advice(
        "discriminator loss stays near 0",
        "the discriminators have won: lower `discriminator_learning_rate`; `--r1_gamma 10.0` or "
        "`--lecam_weight 0.1` keeps them from it",
    ),
    "generator_explodes": Advice(
        "generator loss explodes",
        "raise `gan_feat_weight` to 0.24; set `adversarial_ramp_iters` to some thousands",
    ),
    "codebook_collapse": Advice("`codebook/usage` stays low", "`--quantizer fsq` cannot collapse"),
    "no_improvement": Advice(
        "no improvement over the base model",
        "has the gate opened (`train/disc_loss` in the log)? PSNR alone does not show sharpness: look at "
        "`pictures/` and `val/lpips`",
    ),
    "out_of_memory": Advice(
        "out of memory in training",
        "`--micro_batch_size 1` first (the same gradients), then `--video_gan_weight 0`, then "
        "`--perceptual_weight 0`; `--oom_policy degrade` does this by itself",
    ),
}
