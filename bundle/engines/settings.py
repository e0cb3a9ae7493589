"""Checks of the training settings, before anything is built, read or written."""

from collections.abc import Mapping, Sequence
from typing import Any

from bundle.networks.discriminators import MIN_PATCH_SIZE
from bundle.run.model_settings import STRIDE

SAMPLINGS = ("random", "grid")


class SettingsError(ValueError):
    """A setting of the config that cannot work; the message names it, its value, the rule and what to do."""


def total_iterations(max_epochs: int, epoch_length: int, max_iterations: int | None) -> int:
    """Iterations of the whole run."""
    total = max_epochs * epoch_length
    return total if max_iterations is None else min(total, max_iterations)


def check_training_settings(
    patch_size: Sequence[int],
    batch_size: int,
    micro_batch_size: int,
    max_epochs: int,
    epoch_length: int,
    max_iterations: int | None,
    discriminator_iter_start: int,
    discriminator_pretrain_iters: int,
    weights: Mapping[str, float],
    hu_min: float,
    hu_max: float,
    loss_margin: int,
    sampling: Mapping[str, Any],
    steps: Mapping[str, Any],
) -> None:
    """Refuses settings that would fail later, or that would never do what they promise.

    Raises:
        SettingsError: naming the setting, its value, the rule and what to do.
    """
    counts = {
        "batch_size": batch_size,
        "micro_batch_size": micro_batch_size,
        "max_epochs": max_epochs,
        "epoch_length": epoch_length,
    }
    _check_counts(counts if max_iterations is None else counts | {"max_iterations": max_iterations}, least=1)
    iterations = {
        "discriminator_iter_start": discriminator_iter_start,
        "discriminator_pretrain_iters": discriminator_pretrain_iters,
    }
    _check_counts(iterations | {"loss_margin": loss_margin}, least=0)
    _check_weights(weights)
    _check_steps(**steps)
    _check_window(hu_min, hu_max)
    _check_sampling(patch_size, **sampling)
    adversarial = weights["image_gan_weight"] > 0 or weights["video_gan_weight"] > 0
    _check_patch(patch_size, loss_margin, MIN_PATCH_SIZE if adversarial else 4)
    if adversarial or weights.get("perceptual_weight", 0) > 0:
        total = total_iterations(max_epochs, epoch_length, max_iterations)
        _check_gate(discriminator_iter_start + discriminator_pretrain_iters, total)


def _check_counts(counts: Mapping[str, Any], least: int) -> None:
    for name, value in counts.items():
        _require(
            isinstance(value, int) and value >= least,
            f"`{name}` must be a whole number from {least}, got {value!r}",
        )


def _check_weights(weights: Mapping[str, Any]) -> None:
    for name, value in weights.items():
        _require(
            isinstance(value, int | float) and value >= 0, f"`{name}` must be a number from 0, got {value!r}"
        )


def _check_steps(gradient_clip: Any, **rates: Any) -> None:
    for name, value in rates.items():
        _require(
            isinstance(value, int | float) and value > 0, f"`{name}` must be a number above 0, got {value!r}"
        )
    # 0 would scale every gradient to nothing: a run of days that moves no weight, and says nothing
    _require(
        gradient_clip is None or (isinstance(gradient_clip, int | float) and gradient_clip > 0),
        f"`gradient_clip` must be a number above 0, got {gradient_clip!r}; not to clip give '$None'",
    )


def _check_sampling(patch_size: Sequence[int], patch_sampling: str, **shares: Any) -> None:
    _require(
        patch_sampling in SAMPLINGS,
        f"`patch_sampling` must be one of {', '.join(SAMPLINGS)}, got {patch_sampling!r}",
    )
    for name, value in shares.items():
        _require(
            isinstance(value, int | float) and 0 <= value <= 1,
            f"`{name}` must be a number from 0 to 1, got {value!r}",
        )
    placed = shares["foreground_ratio"] + shares["vessel_ratio"]
    _require(
        placed <= 1,
        f"`foreground_ratio` + `vessel_ratio` must be at most 1, got {placed:g}; both are shares of all",
    )
    _require(
        shares["turn_probability"] == 0 or patch_size[0] == patch_size[1],
        f"`patch_size` must have two equal first sides for `turn_probability` above 0, got {patch_size}",
    )


def _check_window(hu_min: Any, hu_max: Any) -> None:
    _require(
        all(isinstance(value, int | float) for value in (hu_min, hu_max)) and hu_min < hu_max,
        f"`hu_min` must be a number below `hu_max`, got {hu_min!r} and {hu_max!r}",
    )


def _check_patch(patch_size: Any, loss_margin: int, smallest: int) -> None:
    _require(
        isinstance(patch_size, Sequence)
        and len(patch_size) == 3
        and all(isinstance(size, int) and size % STRIDE == 0 and size >= smallest for size in patch_size),
        f"`patch_size` must hold three multiples of {STRIDE}, each at least {smallest}, got {patch_size!r}",
    )
    _require(
        loss_margin < min(patch_size) / 2,
        f"`loss_margin` must be below half of the smallest patch side, got {loss_margin} with {patch_size!r}",
    )


def _check_gate(opens: int, total: int) -> None:
    _require(
        opens < total,
        "`discriminator_iter_start` + `discriminator_pretrain_iters` must be below the run's "
        f"{total} iterations (`max_epochs` x `epoch_length`, at most `max_iterations`), got {opens}: the "
        "discriminators and LPIPS would never act on the generator; train longer or open the gate earlier",
    )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise SettingsError(message)
