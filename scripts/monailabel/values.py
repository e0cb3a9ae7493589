"""Checks what a request may set: a short list of numbers and words, each with its range."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from bundle.data.volumes.formats import writable_suffixes
from bundle.run.names import printable

# What the config parser evaluates, looks up or replaces.
CONFIG_SIGNS = ("$", "@", "%")
SHOWN_LETTERS = 60


class RequestError(ValueError):
    """A request with a value that cannot be used; nothing has been done with it."""


class Rule(NamedTuple):
    """Which values a setting takes.

    Attributes:
        text: the rule in words, to stand behind "must be".
        holds: tells whether a value keeps it; any JSON value may come.
    """

    text: str
    holds: Callable[[Any], bool]


def whole(low: int, high: int) -> Rule:
    """Whole numbers from `low` to `high`."""
    return Rule(f"a whole number from {low} to {high}", lambda value: _is_whole(value, low, high))


def whole_or_null(low: int, high: int) -> Rule:
    """Whole numbers from `low` to `high`, or null."""
    return Rule(
        f"null or a whole number from {low} to {high}",
        lambda value: value is None or _is_whole(value, low, high),
    )


def number(low: float, high: float) -> Rule:
    """Numbers from `low` to `high`; NaN is none."""
    return Rule(
        f"a number from {low:g} to {high:g}",
        lambda value: isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high,
    )


def word(*words: str) -> Rule:
    """One of these words."""
    return Rule(f"one of {', '.join(words)}", lambda value: isinstance(value, str) and value in words)


FLAG = Rule("true or false", lambda value: isinstance(value, bool))
PATCH_SIZE = Rule(
    "a list of 3 multiples of 4 from 16 to 512",
    lambda value: (
        isinstance(value, list)
        and len(value) == 3
        and all(_is_whole(size, 16, 512) and size % 4 == 0 for size in value)
    ),
)
DEVICE = Rule(
    "cpu, cuda, cuda:N of a GPU of the server, or a device that GET /info/ lists",
    lambda value: isinstance(value, str) and value in _devices(),
)

INFERENCE = {"device": DEVICE, "result_extension": word(*writable_suffixes())}
TRAINING = {
    "device": DEVICE,
    "pretrained": FLAG,
    "val_split": number(0.01, 0.99),
    "max_epochs": whole(1, 10_000),
    "epoch_length": whole(1, 1_000_000),
    "max_iterations": whole_or_null(1, 100_000_000),
    "val_interval": whole(1, 10_000),
    "checkpoint_interval": whole(1, 1_000_000),
    "log_interval": whole(1, 1_000_000),
    "max_patients": whole_or_null(1, 1_000_000),
    "num_workers": whole(0, 64),
    "seed": whole(0, 2**32 - 1),
    "amp": FLAG,
    "preset": word("default", "large", "lite"),
    "quantizer": word("ema", "fsq"),
    "num_embeddings": whole(2, 65536),
    "hu_min": number(-32768, 32767),
    "hu_max": number(-32768, 32767),
    "patch_size": PATCH_SIZE,
    "patch_sampling": word("random", "grid"),
    "foreground_ratio": number(0, 1),
    "vessel_ratio": number(0, 1),
    "flip_probability": number(0, 1),
    "turn_probability": number(0, 1),
    "batch_size": whole(1, 1024),
    "micro_batch_size": whole(1, 1024),
    "learning_rate": number(1e-9, 1),
    "discriminator_learning_rate": number(1e-9, 1),
    "learning_rate_warmup": whole(0, 10_000_000),
    "learning_rate_final_ratio": number(0, 1),
    "gradient_clip": number(1e-6, 1e6),
    "l1_weight": number(0, 1000),
    "commitment_weight": number(0, 1000),
    "perceptual_weight": number(0, 1000),
    "image_gan_weight": number(0, 1000),
    "video_gan_weight": number(0, 1000),
    "gan_feat_weight": number(0, 1000),
    "discriminator_iter_start": whole(0, 100_000_000),
    "discriminator_pretrain_iters": whole(0, 100_000_000),
    "adversarial_ramp_iters": whole(0, 100_000_000),
    "r1_gamma": number(0, 1000),
    "lecam_weight": number(0, 1000),
    "spectral_norm": FLAG,
    "oom_policy": word("stop", "degrade"),
}


def check_values(given: Any, rules: Mapping[str, Rule]) -> dict[str, Any]:
    """Returns the values of a request when each has a name on the list and keeps its rule.

    Args:
        given: what came with the request, of any type.
        rules: what may be set.

    Raises:
        RequestError: if it is no JSON object, or naming the first value that cannot be used.
    """
    if not isinstance(given, dict):
        raise RequestError(f"the settings must be a JSON object, got {shown(given)}; write {{}} for none")
    for name, value in given.items():
        if name not in rules:
            near = difflib.get_close_matches(str(name), rules, n=1)
            advice = f"did you mean `{near[0]}`?" if near else "leave it out"
            raise RequestError(
                f"`{printable(str(name))[:SHOWN_LETTERS]}` cannot be set by a request, only "
                f"{', '.join(rules)} can; {advice}"
            )
        if not rules[name].holds(value):
            advice = "expressions are never evaluated" if _has_config_sign(value) else "correct it"
            raise RequestError(f"`{name}` must be {rules[name].text}, got {shown(value)}; {advice}")
    return dict(given)


def shown(value: Any) -> str:
    """Shortens a foreign value to one harmless line for a message."""
    text = printable(repr(value))
    return text if len(text) <= SHOWN_LETTERS else f"{text[:SHOWN_LETTERS]}..."


def _is_whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _has_config_sign(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(_has_config_sign(each) for each in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, str) and value.startswith(CONFIG_SIGNS)


def _devices() -> set[str]:
    """`cpu`, `cuda`, each GPU by its number, and each by the name that MONAI Label shows in GET /info/."""
    numbers = range(torch.cuda.device_count())
    names = [torch.cuda.get_device_name(number) for number in numbers]
    shown_names = names if len(names) == 1 else [f"{name}:{number}" for number, name in enumerate(names)]
    return {"cpu", "cuda", *(f"cuda:{number}" for number in numbers), *shown_names}
