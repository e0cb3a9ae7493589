"""Holds the rule of every setting that a person can give; parts and the start of a run check values with it.

A new setting of a config needs one line in `RULES`; a test compares the table with the configs. The end of
this file has the rules for what a checkpoint or a file of codes says of its generator, which is checked
before the generator is built.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from bundle.run.names import shown

STRIDE = 4
"""Voxels per latent cell and axis, of every preset."""
NETWORK_SETTINGS = ("preset", "quantizer", "num_embeddings", "hu_min", "hu_max")
CODECS = ("jpeg2000", "jpegxl", "hevc")  # that evaluation can judge beside a network
MOST_CODES = 65536  # indices are stored as uint16
HU = (-32768, 32767)  # volumes are stored as int16
LARGEST_COUNT = 10**9
LARGEST_NUMBER = float(torch.finfo(torch.float32).max)


class SettingsError(ValueError):
    """A setting of the config that cannot work; the message names it, its value, the rule and what to do."""


class Rule(NamedTuple):
    """Says what a setting may be.

    Attributes:
        told: the rule in words, to follow "must be".
        holds: whether a value keeps it.
        example: a value that does, for the message.
        null: whether null may stand there too.
        is_path: whether the command line's text is taken as it is, also if it looks like a number.
    """

    told: str
    holds: Callable[[Any], bool]
    example: Any
    null: bool = False
    is_path: bool = False

    def or_null(self) -> Rule:
        """Returns the same rule for a setting that may be left out."""
        return self._replace(told=f"{self.told}, or null", null=True)

    def fault(self, name: str, value: Any) -> str | None:
        """Names setting, rule, value and remedy in one line; None where the value keeps the rule."""
        if (value is None and self.null) or (value is not None and self.holds(value)):
            return None
        remedy = f"set e.g. --{name} {self.example}" + (f" or --{name} '$None'" if self.null else "")
        return f"`{name}` must be {self.told}, got {shown(value)}; {remedy}"


def whole(least: int, most: int = LARGEST_COUNT, example: int | None = None) -> Rule:
    """Makes the rule for a whole number, both ends included."""
    told = f"a whole number from {least}" + (f" to {most}" if most != LARGEST_COUNT else "")
    holds = lambda value: _is_whole(value) and least <= value <= most  # noqa: E731
    return Rule(told, holds, least if example is None else example)


def number(least: float, most: float = math.inf, example: float | None = None) -> Rule:
    """Makes the rule for a finite number, both ends included."""
    told = f"a number from {least}" + (f" to {most}" if most != math.inf else "")
    holds = lambda value: _is_number(value) and least <= value <= most  # noqa: E731
    return Rule(told, holds, least if example is None else example)


def number_above(bound: float, most: float, example: float) -> Rule:
    """Makes the rule for a finite number above `bound`, up to and including `most`."""
    told = f"a number above {bound}" + (f" up to {most}" if most != math.inf else "")
    return Rule(told, lambda value: _is_number(value) and bound < value <= most, example)


def word(*words: str) -> Rule:
    """Makes the rule for one of these words."""
    return Rule(
        f"one of {', '.join(words)}", lambda value: isinstance(value, str) and value in words, words[0]
    )


def switch() -> Rule:
    """Makes the rule for true or false."""
    return Rule("true or false", lambda value: isinstance(value, bool), "true")


def path(example: str) -> Rule:
    """Makes the rule for a file or folder; whether it exists is checked where it is opened."""
    holds = lambda value: isinstance(value, str) and value != "" and "\0" not in value  # noqa: E731
    return Rule("a path", holds, example, is_path=True)


def sides(least: int, multiple: int) -> Rule:
    """Makes the rule for three lengths in voxels."""

    def holds(value: Any) -> bool:
        return (
            _is_list(value) and len(value) == 3 and all(_is_length(side, least, multiple) for side in value)
        )

    return Rule(f"three multiples of {multiple}, each at least {least}", holds, "[64,64,64]")


def _is_length(value: Any, least: int, multiple: int) -> bool:
    return _is_whole(value) and least <= value <= LARGEST_COUNT and value % multiple == 0


def _is_tile(value: Any) -> bool:
    if value == "auto":
        return True
    lengths = value if _is_list(value) and len(value) == 3 else [value]
    return all(_is_length(length, 2 * STRIDE, STRIDE) for length in lengths)


def _is_device(value: Any) -> bool:
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError, ValueError, OverflowError):
        return False
    return device.type == "cpu" or (device.type == "cuda" and (device.index or 0) < torch.cuda.device_count())


def _are_widths(value: Any) -> bool:
    return _is_list(value) and len(value) > 0 and all(_is_length(width, 32, 32) for width in value)


def _are_codecs(value: Any) -> bool:
    return _is_list(value) and len(value) > 0 and all(codec in CODECS for codec in value)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (_is_whole(value) or isinstance(value, float)) and abs(value) <= LARGEST_NUMBER


_count = whole(1)
_iterations = whole(0)
_share = number(0, 1, example=0.5)
_weight = number(0)
_rate = number_above(0, 1, example=1e-4)
_codes = whole(2, MOST_CODES, example=16384)
_hu_min, _hu_max = number(*HU, example=-1000.0), number(*HU, example=1000.0)

RULES: dict[str, Rule] = {
    "bundle_root": path("."),
    "dataset_dir": path("dataset"),
    "output_dir": path("outputs/run"),
    "cache_dir": path("outputs/cache"),
    "source_dir": path("dataset").or_null(),
    "ckpt_path": path("models/model.pt"),
    "pairs": path("pairs.csv").or_null(),
    "init_from": path("outputs/vqgan_patches/checkpoints/last.pt").or_null(),
    "resume_from_checkpoint": path("auto").or_null(),
    "perceptual_weights_path": path("vgg16-397923af.pth").or_null(),
    "latent_statistics": path("models/model_codes.json"),
    "device": Rule("cpu, or cuda:N of a GPU that torch sees", _is_device, "cpu"),
    "seed": whole(0, 2**32 - 1, example=1234),
    "amp": switch(),
    "amp_on_cpu": switch(),
    "torch_compile": switch(),
    "num_workers": whole(0, 1024),
    "max_patients": _count.or_null(),
    "allow_shared_patients": switch(),
    # network and window; null = the checkpoint's own
    "preset": word("default", "large", "lite").or_null(),
    "quantizer": word("ema", "fsq").or_null(),
    "num_embeddings": _codes.or_null(),
    "hu_min": _hu_min.or_null(),
    "hu_max": _hu_max.or_null(),
    "trains_vqgan": switch(),
    # length
    "max_epochs": _count,
    "epoch_length": _count,
    "max_iterations": _count.or_null(),
    "val_interval": _count,
    "checkpoint_interval": _count,
    "keep_last": _count,
    "log_interval": _count,
    # batches
    "patch_size": sides(STRIDE, STRIDE),
    "patch_sampling": word("random", "grid"),
    "foreground_ratio": _share,
    "vessel_ratio": _share,
    "flip_probability": _share,
    "turn_probability": _share,
    "batch_size": _count,
    "micro_batch_size": _count,
    "tile_size": Rule(
        f"auto, or one or three multiples of {STRIDE} voxels from {2 * STRIDE}", _is_tile, "auto"
    ).or_null(),
    "halo": Rule(
        f"a multiple of {STRIDE} voxels from 0", lambda value: _is_length(value, 0, STRIDE), 44
    ).or_null(),
    # optimizers; a clip of 0 would scale every gradient to nothing, and say nothing
    "learning_rate": _rate,
    "discriminator_learning_rate": _rate,
    "learning_rate_warmup": _iterations,
    "learning_rate_final_ratio": _share,
    "gradient_clip": number_above(0, math.inf, example=1.0).or_null(),
    # objective
    "l1_weight": _weight,
    "commitment_weight": _weight,
    "perceptual_weight": _weight,
    "image_gan_weight": _weight,
    "video_gan_weight": _weight,
    "gan_feat_weight": _weight,
    "loss_margin": _iterations,
    "discriminator_iter_start": _iterations,
    "discriminator_pretrain_iters": _iterations,
    "adversarial_ramp_iters": _iterations,
    "r1_gamma": _weight,
    "lecam_weight": _weight,
    "spectral_norm": switch(),
    "codebook_restart_until": _iterations.or_null(),
    "perceptual_network": word("vgg", "alex", "squeeze"),
    # health
    "nonfinite_policy": word("rollback", "stop"),
    "nonfinite_patience": _count,
    "rollback_learning_rate_ratio": number_above(0, 1, example=0.5),
    "init_from_learning_rate_ratio": number_above(0, 1, example=0.1),
    "health_window": _count,
    "disc_loss_floor": _weight,
    "explosion_ratio": number_above(0, math.inf, example=10.0),
    "codebook_floor": _share,
    "no_improvement_validations": _count,
    "oom_policy": word("stop", "degrade"),
    # several processes, in seconds
    "rank_timeout_s": whole(1, example=600),
    "store_timeout_s": whole(1, example=86400),
    # inference, codes and the latent diffusion model
    "shard_index": whole(0),
    "shard_count": _count,
    "skip_existing": switch(),
    "on_error": word("stop", "skip"),
    "output_format": word("nifti", "dicom"),
    "keep_latents": switch(),
    "codecs": Rule(f"a list of {', '.join(CODECS)}", _are_codecs, "[hevc]").or_null(),
    "codec_bits_per_voxel": number_above(0, 12, example=0.22).or_null(),
    "write_volumes": switch(),
    "allow_seen": switch(),
    "from_latents": switch(),
    "latent_source": word("codes", "latents"),
    "validation_patches": _count,
    "timesteps": whole(20, example=1000),  # with fewer, the last beta of the noise would be above 1: NaN
    "diffusion_channels": Rule("a list of multiples of 32", _are_widths, "[64,128,256]"),
}
_name = Rule("a word", lambda value: isinstance(value, str) and value.isidentifier(), "default")
_OF_FILES = {
    "preset": _name,
    "quantizer": _name,
    "num_embeddings": _codes,
    "hu_min": _hu_min,
    "hu_max": _hu_max,
}
PATHS = tuple(name for name, rule in RULES.items() if rule.is_path)
SWITCHES = tuple(name for name, rule in RULES.items() if rule.told == switch().told)


def faults(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields name and message of each setting that breaks its rule; names without a rule are skipped."""
    found = False
    for name, value in settings.items():
        told = RULES[name].fault(name, value) if name in RULES else None
        if told is not None:
            found = True
            yield name, told
    told = None if found else _window_fault(settings)
    if told is not None:
        yield "hu_min", f"{told}; set e.g. --hu_min -1000.0"
    index, count = settings.get("shard_index"), settings.get("shard_count")
    if not found and index is not None and count is not None and not index < count:
        yield (
            "shard_index",
            f"`shard_index` must be below `shard_count`, got {index} and {count}; shards count from 0, so "
            f"the last one is --shard_index {count - 1}",
        )


def check(**settings: Any) -> None:
    """Refuses values that break the rule of their setting; for parts, by the names that users know.

    Raises:
        SettingsError: naming the first one, its value, the rule and what to do.
    """
    for _, told in faults(settings):
        raise SettingsError(told)


def network_settings(
    preset: str, quantizer: str, num_embeddings: int, hu_min: float, hu_max: float
) -> dict[str, Any]:
    """Returns the settings of a generator as plain values, in the order of `NETWORK_SETTINGS`."""
    return {
        "preset": str(preset),
        "quantizer": str(quantizer),
        "num_embeddings": int(num_embeddings),
        "hu_min": float(hu_min),
        "hu_max": float(hu_max),
    }


def settings_fault(settings: Any) -> str | None:
    """Names the first setting of a file that breaks its rule, its value and the rule; None if none does.

    A word is not compared with the presets that exist: a newer version may have written the file.
    """
    if not isinstance(settings, Mapping):
        return f"`network` must hold settings by name, got {shown(settings)}"
    for name, rule in _OF_FILES.items():
        if name in settings and not rule.holds(settings[name]):
            return f"`{name}` must be {rule.told}, got {shown(settings[name])}"
    return _window_fault(settings)


def _window_fault(settings: Mapping[str, Any]) -> str | None:
    low, high = settings.get("hu_min"), settings.get("hu_max")
    is_empty = low is not None and high is not None and not low < high
    return f"`hu_min` must be below `hu_max`, got {low} and {high}" if is_empty else None
