"""Every setting of every config has a rule, keeps it, and refuses bad values in one line."""

import copy
import math
from pathlib import Path

import pytest
import yaml
from monai.bundle import ConfigParser

from bundle.engines.settings import settings_of
from bundle.losses.perceptual import BACKBONES
from bundle.networks.vqgan import PRESETS
from bundle.run.errors import own_message
from bundle.run.rules import RULES, SettingsError, check, faults

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "configs").glob("*.yaml"))
}


def head_of(config):
    """What a person edits: the ids above the first component."""
    head = {}
    for name, value in config.items():
        if isinstance(value, dict):
            return head
        head[name] = value
    return head


HEADS = {name: head_of(config) for name, config in CONFIGS.items()}
SETTINGS = sorted({name for head in HEADS.values() for name in head})
DEFAULTS = {name: [head[name] for head in HEADS.values() if name in head] for name in SETTINGS}
# No setting can be one of these, nor, but for paths, switches and HU, the next three.
BAD = [math.nan, math.inf, -math.inf, 10**400, -40_000, {"a": 1}, [], ["x", None], "", "a\0b", 1 + 2j, b"x"]
NONSENSE, TRUE, NEGATIVE = "nonsense", True, -3
# Beyond what the kind of a default tells.
OUT_OF_RANGE = {
    **dict.fromkeys(("max_epochs", "epoch_length", "max_iterations", "batch_size", "micro_batch_size"), [0]),
    **dict.fromkeys(
        ("val_interval", "checkpoint_interval", "keep_last", "log_interval", "max_patients"), [0]
    ),
    **dict.fromkeys(("nonfinite_patience", "health_window", "validation_patches"), [0]),
    **dict.fromkeys(("shard_count", "store_timeout_s"), [0]),
    **dict.fromkeys(("learning_rate", "discriminator_learning_rate"), [0, 1.5]),
    **dict.fromkeys(("gradient_clip", "rollback_learning_rate_ratio", "explosion_ratio"), [0]),
    **dict.fromkeys(("foreground_ratio", "vessel_ratio", "flip_probability", "turn_probability"), [1.5]),
    **dict.fromkeys(("learning_rate_final_ratio", "codebook_floor", "rollback_learning_rate_ratio"), [1.5]),
    **dict.fromkeys(("hu_min", "hu_max"), [-32769, 32768, -40000.5]),
    "seed": [2**32],
    "timesteps": [19],
    "num_embeddings": [1, 65537],
    "patch_size": [[0, 4, 4], [24, 24], [24, 24, 26], [24.0, 24, 24], 24],
    "diffusion_channels": [[64, 100], [64.0], 64],
    "tile_size": [6, 4, [8, 8], [8, 8, 9], 8.0],
    "halo": [6, 44.0],
    "device": ["cuda:9999", "gpu", "meta", 0.5],
}


def test_every_setting_of_every_config_has_a_rule_and_every_rule_a_setting():
    assert set(SETTINGS) == set(RULES)


def test_every_plain_value_stands_in_the_head_of_its_config():
    """Below the first component only things that are built: a setting there would have no rule."""
    below = {
        f"{file}: {name}"
        for file, config in CONFIGS.items()
        for name, value in config.items()
        if name not in HEADS[file]
        and not isinstance(value, dict | list)
        and not (isinstance(value, str) and value.startswith("$"))
    }

    assert below == set()


@pytest.mark.parametrize("file", CONFIGS)
def test_every_default_keeps_its_rule(file):
    with_root = {"bundle_root": ".", "ckpt_path": "m.pt", "latent_source": "codes", "trains_vqgan": True}
    parser = ConfigParser(with_root | HEADS[file])

    assert list(faults(settings_of(parser))) == []


def bad_values_of(name):
    """Values of a wrong kind, sign, size or word, judged by the kind of the defaults and not by the rule."""
    defaults = DEFAULTS[name]
    kinds = {type(value) for value in defaults if value is not None and not str(value).startswith("$")}
    bad = [*BAD, *OUT_OF_RANGE.get(name, [])]
    if not RULES[name].is_path:
        bad.append(NONSENSE)
    if bool not in kinds:
        bad.append(TRUE)
    if name not in ("hu_min", "hu_max"):
        bad.append(NEGATIVE)
    if kinds == {int}:
        bad += [0.5, 10**12, "12"]
    if kinds == {float}:
        bad += ["0.5", [0.5]]
    if None not in defaults and name not in ("gradient_clip", "tile_size"):
        bad.append(None)
    return bad


@pytest.mark.parametrize("name", SETTINGS)
def test_a_bad_value_of_any_setting_ends_in_one_line_with_rule_value_and_remedy(name):
    for value in bad_values_of(name):
        with pytest.raises(SettingsError) as refused:
            check(**{name: value})
        told = str(refused.value)
        assert told.startswith(f"`{name}` must be {RULES[name].told}, got "), told
        assert f"; set e.g. --{name} " in told
        assert told.isprintable() and len(told) < 300, told


WORKFLOWS = [name for name, config in CONFIGS.items() if "run" in config]


@pytest.mark.parametrize("step", ["initialize::0", "run::0"])
@pytest.mark.parametrize("file", WORKFLOWS)
def test_the_first_step_of_every_workflow_refuses_a_bad_value_of_each_of_its_settings(file, step):
    for name in HEADS[file]:
        parser = ConfigParser(copy.deepcopy(CONFIGS[file]) | {name: -40_000})
        with pytest.raises(RuntimeError) as refused:
            parser.get_parsed_content(step)
        message = own_message(refused.value)
        assert message is not None and message.startswith(f"`{name}` must be "), (name, refused.value)


@pytest.mark.parametrize("file", WORKFLOWS)
def test_an_expression_that_cannot_be_evaluated_is_refused_by_the_name_of_its_setting(file):
    parser = ConfigParser(copy.deepcopy(CONFIGS[file]) | {"seed": "$1 / 0"})

    with pytest.raises(RuntimeError) as refused:
        parser.get_parsed_content("run::0")

    message = own_message(refused.value)
    assert message is not None and message.startswith("`seed` must be a whole number")
    assert "got '$1 / 0' which cannot be evaluated (ZeroDivisionError" in message


@pytest.mark.parametrize("file", [file for file in WORKFLOWS if "hu_min" in HEADS[file]])
def test_a_window_upside_down_is_refused_by_every_workflow(file):
    parser = ConfigParser(copy.deepcopy(CONFIGS[file]) | {"hu_min": 1000.0, "hu_max": -1.5})

    with pytest.raises(RuntimeError) as refused:
        parser.get_parsed_content("initialize::0")

    assert "`hu_min` must be below `hu_max`, got 1000.0 and -1.5" in str(own_message(refused.value))


def test_words_of_the_rules_are_those_that_the_parts_know():
    assert RULES["preset"].told == f"one of {', '.join(PRESETS)}, or null"
    assert RULES["perceptual_network"].told == f"one of {', '.join(BACKBONES)}"
