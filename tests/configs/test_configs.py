"""The configs as files and as what MONAI makes of them; nothing here trains."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import set_determinism

from bundle.checkpoints.file import NETWORK_SETTINGS, network_settings, write_checkpoint
from bundle.checkpoints.start import DEFAULTS
from bundle.data.volumes.phantom import write_phantom
from bundle.handlers.curves import TAGS
from bundle.handlers.updates import DiscriminatorUpdate
from bundle.networks.vqgan import build_vqgan
from bundle.run.command import merge_configs
from bundle.run.rules import SettingsError

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "configs").glob("*.yaml"))
WORKFLOWS = {"train": "train", "inference": "infer"}
ADVERSARIAL = {"image_gan_weight": 0.03, "video_gan_weight": 0.015, "gan_feat_weight": 0.12}
SMALL = {
    "preset": "lite",
    "num_embeddings": 64,
    "patch_size": [24, 24, 24],
    "device": "cpu",
    "num_workers": 0,
}


def read(name: str) -> dict:
    return yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def parser(in_root, tmp_path):
    """Merges config files, with a network for two cores and two phantoms, and parses what is asked for."""
    for number in range(2):
        write_phantom(tmp_path / "data" / f"ct{number}.nii.gz", (28, 28, 24), np.eye(4), seed=number)

    def parse(*names: str, **overrides: object) -> ConfigParser:
        parser = merge_configs([f"configs/{name}.yaml" for name in names])
        paths = {"dataset_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / "out")}
        parser.update(SMALL | paths | overrides)
        return parser

    return parse


def leaves(content: object, path: str = "") -> list[tuple[str, object]]:
    if isinstance(content, dict):
        return [leaf for name, item in content.items() for leaf in leaves(item, f"{path}#{name}")]
    if isinstance(content, list):
        return [leaf for n, item in enumerate(content) for leaf in leaves(item, f"{path}#{n}")]
    return [(path, content)]


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_number_is_a_string_as_yaml_reads_1e_4(path):
    values = leaves(yaml.safe_load(path.read_text(encoding="utf-8")))

    assert values
    assert [name for name, value in values if isinstance(value, str) and is_number(value)] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_reference_names_an_id_of_the_same_file_or_of_what_it_is_merged_on(path):
    parser = ConfigParser()
    below = {
        "train_with_discriminator": ["train.yaml"],
        "export": ["inference.yaml"],
        "multi_gpu_encode": ["encode.yaml"],
        "multi_gpu_inference": ["inference.yaml"],
        "smoke": ["train.yaml"],
    }.get(path.stem, [])
    parser.read_config([*(str(ROOT / "configs" / name) for name in below), str(path)])
    text = path.read_text(encoding="utf-8")
    names = set(re.findall(r"@([A-Za-z_][\w#]*)", text))

    assert [name for name in sorted(names) if name not in parser] == []


def test_smoke_holds_top_level_numbers_words_and_lists_only():
    nested = [
        name for name, value in read("smoke").items() if isinstance(value, dict) or ":" in name or "#" in name
    ]

    assert nested == []
    assert set(read("smoke")) <= set(read("train"))


def test_the_overlay_holds_only_what_differs_from_the_base_config():
    base, overlay = read("train"), read("train_with_discriminator")

    unchanged = {name for name, value in overlay.items() if base[name] == value}
    # stands there because the README and the users look for it beside the weights
    assert unchanged <= {"discriminator_iter_start"}


def test_weights_are_those_that_were_decided():
    base = {
        "l1_weight": 1.0,
        "commitment_weight": 0.25,
        "perceptual_weight": 0.0,
        "image_gan_weight": 0.0,
        "video_gan_weight": 0.0,
        "gan_feat_weight": 0.0,
    }
    adversarial = {
        "perceptual_weight": 0.1,
        **ADVERSARIAL,
        "discriminator_iter_start": 10000,
        "max_epochs": 50,
    }

    train, merged = read("train"), read("train") | read("train_with_discriminator")
    assert {name: train[name] for name in base} == base
    assert {name: merged[name] for name in base | adversarial} == base | adversarial


@pytest.mark.parametrize("name", ["network_def", "network"])
def test_training_and_inference_agree_on_the_network(name):
    assert read("train")[name] == read("inference")[name]


@pytest.mark.parametrize("name", ["inference", "encode", "decode", "train_diffusion"])
def test_where_a_checkpoint_is_loaded_its_own_settings_are_the_default(name):
    assert [setting for setting in NETWORK_SETTINGS if read(name)[setting] is not None] == []
    assert read(name)["network_settings"] == {
        "_target_": "bundle.checkpoints.start.settings_of",
        "ckpt_path": "@ckpt_path",
        **{setting: f"@{setting}" for setting in NETWORK_SETTINGS},
    }


def test_the_defaults_without_a_checkpoint_are_those_of_training():
    assert {name: read("train")[name] for name in NETWORK_SETTINGS} == DEFAULTS


@pytest.mark.parametrize("name", ["inference", "encode", "decode", "train_diffusion"])
def test_smoke_leaves_the_network_of_a_checkpoint_as_it_is(parser, checkpoint, name):
    merged = parser(name, "smoke", ckpt_path=str(checkpoint), preset=None, num_embeddings=None)
    for setting in ("preset", "num_embeddings"):
        merged[setting] = read("smoke")[setting]

    assert merged.get_parsed_content("network_settings") == network_settings("lite", "ema", 64, -1000, 1000)
    assert parser("train", "smoke").get_parsed_content("trains_vqgan")


def test_training_and_inference_clip_and_scale_by_the_same_window():
    scale = next(
        step
        for step in read("inference")["preprocessing"]["transforms"]
        if "ScaleHUWindowd" in step["_target_"]
    )

    expected = read("train")["train"]["preprocessing"]
    assert scale == expected | {end: f"$@network_settings['{end}']" for end in ("hu_min", "hu_max")}


def test_shared_settings_have_one_default_unless_they_mean_something_else():
    train, inference = read("train"), read("inference")
    shared = {name for name in train.keys() & inference.keys() if not isinstance(train[name], dict | list)}

    assert {name for name in shared if train[name] != inference[name]} == {
        *("amp", "output_dir", "num_workers", "trains_vqgan", *NETWORK_SETTINGS),
    }


@pytest.fixture
def checkpoint(tmp_path):
    network, path = build_vqgan("lite", "ema", SMALL["num_embeddings"]), tmp_path / "model.pt"
    settings = network_settings("lite", "ema", SMALL["num_embeddings"], -1000, 1000)
    write_checkpoint(path, {"model": network.state_dict(), "network": settings})
    return path


@pytest.mark.parametrize(("name", "workflow_type"), WORKFLOWS.items())
def test_monai_finds_every_property_that_it_requires(parser, checkpoint, tmp_path, name, workflow_type):
    paths = {"dataset_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / "out")}
    model = {"ckpt_path": str(checkpoint)} if name == "inference" else {}
    file = f"configs/{name}.yaml"
    workflow = ConfigWorkflow(
        file, workflow_type=workflow_type, logging_file=False, **SMALL, **paths, **model
    )
    workflow.initialize()

    try:
        assert workflow.check_properties() == []
    finally:
        set_determinism(None)


def test_building_everything_writes_nothing(parser, tmp_path):
    before = sorted(tmp_path.rglob("*"))

    parser("train", **ADVERSARIAL).get_parsed_content("train#trainer")

    assert sorted(tmp_path.rglob("*")) == before


def test_with_every_gan_weight_0_no_discriminator_no_optimizer_and_no_update_is_built(parser):
    base = parser("train", gan_feat_weight=4.0)

    assert len(base.get_parsed_content("discriminators")) == 0
    assert base.get_parsed_content("discriminator_optimizer") is None
    assert base.get_parsed_content("perceptual") is None
    handlers = base.get_parsed_content("train#handlers")
    assert not any(isinstance(handler, DiscriminatorUpdate) for handler in handlers)


@pytest.mark.parametrize(
    ("weights", "names"), [({"image_gan_weight": 1.0}, 1), ({"video_gan_weight": 0.5}, 1), (ADVERSARIAL, 2)]
)
def test_a_discriminator_is_built_for_each_gan_weight_above_0(parser, weights, names):
    adversarial = parser("train", **weights)

    assert len(adversarial.get_parsed_content("discriminators")) == names
    updates = adversarial.get_parsed_content("train#handlers")
    assert len([handler for handler in updates if isinstance(handler, DiscriminatorUpdate)]) == 1


CHECK = "run#0"
LENGTH = {"max_epochs": 2, "epoch_length": 10}


@pytest.mark.parametrize(
    ("start", "more"),
    [(20, {}), (25, {}), (15, {"discriminator_pretrain_iters": 5}), (12, {"max_iterations": 12})],
)
def test_an_adversarial_run_that_ends_at_or_before_its_gate_is_refused(parser, start, more):
    config = parser("train", **ADVERSARIAL, **LENGTH, discriminator_iter_start=start, **more)

    with pytest.raises(RuntimeError, match="bundle.engines.settings") as caught:
        config.get_parsed_content(CHECK)

    assert isinstance(caught.value.__cause__, SettingsError)
    assert "must be below the run's" in str(caught.value.__cause__)


@pytest.mark.parametrize(("weights", "start"), [({}, 25), (ADVERSARIAL, 19)])
def test_a_base_run_has_no_gate_to_miss_and_a_longer_one_reaches_it(parser, weights, start):
    parser("train", **weights, **LENGTH, discriminator_iter_start=start).get_parsed_content(CHECK)


def test_curves_have_the_names_that_were_decided():
    assert set(TAGS) == {
        *(f"train/{name}" for name in "recon_loss commitment_loss perceptual_loss gen_loss".split()),
        *(f"train/{name}" for name in "disc_loss gan_feat_loss learning_rate".split()),
        *(f"codebook/{name}" for name in "usage perplexity restarts".split()),
        *(f"val/{name}" for name in "psnr ssim lpips mae_hu rmse_hu grid".split()),
    }
