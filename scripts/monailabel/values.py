"""Checks what a request may set: a short list of numbers and words, each with its range."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch

from bundle.data.volumes.formats import writable_suffixes
from bundle.run.names import SHOWN_CHARACTERS, printable, shown
from bundle.run.rules import RULES, STRIDE, Rule, number, switch, whole, word

# Signs by which the config parser evaluates, looks up or replaces text.
CONFIG_SIGNS = ("$", "@", "%")


class RequestError(ValueError):
    """A request with a value that cannot be used; nothing was done with it."""


# A larger batch, or more processes, would take the whole machine.
LARGEST_SIDE, LARGEST_BATCH, MOST_WORKERS = 512, 1024, 64
# 512 x 512 x 2048: three times a long CT pulmonary angiogram. A small packed file may declare far more.
MAX_VOXELS = 512 * 512 * 2048
DEVICE = Rule(
    "cpu, cuda, cuda:N of a GPU of the server, or a device that GET /info/ lists",
    lambda value: isinstance(value, str) and value in _devices(),
    "cuda",
)
PATCH_SIZE = Rule(
    f"three multiples of {STRIDE} from {STRIDE} to {LARGEST_SIDE}",
    lambda value: RULES["patch_size"].holds(value) and max(value) <= LARGEST_SIDE,
    [128, 128, 128],
)

INFERENCE = {"device": DEVICE, "result_extension": word(*writable_suffixes())}
TRAINING = {
    "device": DEVICE,
    "pretrained": switch(),
    "val_split": number(0.01, 0.99, example=0.2),
    "num_workers": whole(0, MOST_WORKERS),
    "patch_size": PATCH_SIZE,
    "batch_size": whole(1, LARGEST_BATCH),
    "micro_batch_size": whole(1, LARGEST_BATCH),
} | {
    name: RULES[name]
    for name in (
        *("max_epochs", "epoch_length", "max_iterations", "val_interval", "checkpoint_interval"),
        *("log_interval", "max_patients", "allow_shared_patients", "seed", "amp", "amp_on_cpu", "oom_policy"),
        *("preset", "quantizer", "num_embeddings", "hu_min", "hu_max"),
        *("patch_sampling", "foreground_ratio", "vessel_ratio", "flip_probability", "turn_probability"),
        *("learning_rate", "discriminator_learning_rate", "learning_rate_warmup"),
        *("learning_rate_final_ratio", "gradient_clip", "l1_weight", "commitment_weight"),
        *("perceptual_weight", "image_gan_weight", "video_gan_weight", "gan_feat_weight"),
        *("discriminator_iter_start", "discriminator_pretrain_iters", "adversarial_ramp_iters"),
        *("r1_gamma", "lecam_weight", "spectral_norm"),
    )
}


def check_values(given: Any, rules: Mapping[str, Rule]) -> dict[str, Any]:
    """Returns the values of a request if each has a name on the list and keeps its rule.

    Args:
        given: what came with the request, of any type.
        rules: what may be set.

    Raises:
        RequestError: if it is not a JSON object, or naming the first value that cannot be used.
    """
    if not isinstance(given, dict):
        raise RequestError(f"the settings must be a JSON object, got {shown(given)}; write {{}} for none")
    for name, value in given.items():
        if name not in rules:
            near = difflib.get_close_matches(str(name), rules, n=1)
            advice = f"did you mean `{near[0]}`?" if near else "leave it out"
            raise RequestError(
                f"`{printable(str(name))[:SHOWN_CHARACTERS]}` cannot be set by a request, only "
                f"{', '.join(rules)} can; {advice}"
            )
        rule = rules[name]
        if not ((value is None and rule.null) or (value is not None and rule.holds(value))):
            advice = "expressions are never evaluated" if _has_config_sign(value) else "correct it"
            raise RequestError(f"`{name}` must be {rule.told}, got {shown(value)}; {advice}")
    return dict(given)


def largest_volume(conf: Mapping[str, str]) -> int:
    """Returns the voxels that a volume of a request may have, by the operator's `max_voxels`.

    Raises:
        RequestError: if it is no whole number from 1.
    """
    given = conf.get("max_voxels", str(MAX_VOXELS))
    if not (given.isascii() and given.isdigit() and 0 < int(given) < 1 << 40):
        raise RequestError(f"`max_voxels` must be a whole number from 1, got {shown(given)}; correct --conf")
    return int(given)


def _has_config_sign(value: Any) -> bool:
    waiting = [value]  # without recursion, which nested lists could exhaust
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict | list):
            waiting += one.values() if isinstance(one, dict) else one
        elif isinstance(one, str) and one.startswith(CONFIG_SIGNS):
            return True
    return False


def _devices() -> set[str]:
    """Lists `cpu`, `cuda`, and each GPU by its number and by its name in GET /info/."""
    numbers = range(torch.cuda.device_count())
    names = [torch.cuda.get_device_name(number) for number in numbers]
    shown_names = names if len(names) == 1 else [f"{name}:{number}" for number, name in enumerate(names)]
    return {"cpu", "cuda", *(f"cuda:{number}" for number in numbers), *shown_names}
