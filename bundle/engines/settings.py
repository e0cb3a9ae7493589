"""Checks of the training settings, before anything is built, read or written."""

from collections.abc import Sequence

from bundle.networks.discriminators import MIN_PATCH_SIZE


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
    weights: dict[str, float],
    hu_min: float,
    hu_max: float,
    loss_margin: int,
) -> None:
    """Refuses settings that would fail later, or that would never do what they promise.

    Raises:
        SettingsError: naming the setting, its value, the rule and what to do.
    """
    adversarial = weights["image_gan_weight"] > 0 or weights["video_gan_weight"] > 0
    for name, value in weights.items():
        _require(value >= 0, f"`{name}` must be at least 0, got {value}")
    for name, value in {
        "batch_size": batch_size,
        "micro_batch_size": micro_batch_size,
        "max_epochs": max_epochs,
        "epoch_length": epoch_length,
    }.items():
        _require(
            isinstance(value, int) and value >= 1, f"`{name}` must be a whole number from 1, got {value!r}"
        )
    _require(hu_min < hu_max, f"`hu_min` must be below `hu_max`, got {hu_min} and {hu_max}")
    smallest = MIN_PATCH_SIZE if adversarial else 4
    _require(
        len(patch_size) == 3 and all(size % 4 == 0 and size >= smallest for size in patch_size),
        f"`patch_size` must hold three multiples of 4, each at least {smallest}, got {list(patch_size)}",
    )
    _require(
        0 <= loss_margin < min(patch_size) / 2,
        f"`loss_margin` must lie between 0 and half of the smallest patch side, got {loss_margin}",
    )
    total = total_iterations(max_epochs, epoch_length, max_iterations)
    opens = discriminator_iter_start + discriminator_pretrain_iters
    _require(
        not adversarial or total > opens,
        f"`discriminator_iter_start` + `discriminator_pretrain_iters` must be below the run's {total} "
        f"iterations (`max_epochs` {max_epochs} x `epoch_length` {epoch_length}, `max_iterations` "
        f"{max_iterations}), got {opens}: the discriminators would never act on the generator; train longer or "
        "open the gate earlier",
    )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise SettingsError(message)
