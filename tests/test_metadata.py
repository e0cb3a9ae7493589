import copy
import json
import os
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from bundle.networks.vqgan import build_vqgan

ROOT = Path(__file__).resolve().parent.parent
METADATA = json.loads((ROOT / "metadata.json").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TENSORS = [
    (f"{side}.{name}", tensor)
    for side, tensors in METADATA["network_data_format"].items()
    for name, tensor in tensors.items()
]
# The rules of meta_schema_20240725.json in words of our own. The first ones of each are required.
TEXT = "schema version monai_version pytorch_version numpy_version task description authors copyright".split()
REQUIRED = [*TEXT, "required_packages_version", "network_data_format"]
MORE_TEXT = "data_source data_type image_classes label_classes pred_classes intended_use".split()
MAPS = "required_packages_version network_data_format changelog eval_metrics supported_apps".split()
TYPES = dict.fromkeys([*TEXT, *MORE_TEXT], str) | dict.fromkeys(MAPS, dict) | {"references": list}
TENSOR_TYPES = {
    "type": str,
    "format": str,
    "num_channels": int,
    "spatial_shape": list,
    "dtype": str,
    "value_range": list,
    "is_patch_data": bool,
    "channel_def": dict,
}
TENSOR_REQUIRED = list(TENSOR_TYPES)[:6]
SCHEMA = os.environ.get("CTPA_VQGAN_METADATA_SCHEMA", "")


def faults(metadata: dict) -> list[str]:
    """Every rule of the schema that these metadata break."""
    networks = {name: metadata[name] for name in metadata if re.fullmatch(r"\w+_data_format", name)}
    found = wrong_types("", metadata, REQUIRED, TYPES)
    references = metadata.get("references")
    for text in references if isinstance(references, list) else ():
        found += [] if isinstance(text, str) else [f"references: {text}"]
    return found + [fault for name, network in networks.items() for fault in network_faults(name, network)]


def network_faults(name: str, network: dict) -> list[str]:
    sides = ["inputs", "outputs", "post_processed_outputs"]
    found = wrong_types(f"{name}.", network, sides[:2], dict.fromkeys(sides, dict))
    for side in sides if not found else ():
        for key, tensor in network.get(side, {}).items():
            if not isinstance(tensor, int | float | str | bool):
                found += tensor_faults(f"{name}.{side}.{key}.", tensor)
    return found


def tensor_faults(where: str, tensor: dict) -> list[str]:
    found = wrong_types(where, tensor, TENSOR_REQUIRED, TENSOR_TYPES)
    for key, kind in () if found else (("spatial_shape", int | str), ("value_range", int | float)):
        found += [f"{where}{key}: {part}" for part in tensor[key] if not isinstance(part, kind)]
    return found


def wrong_types(where: str, given: dict, required: list[str], types: dict[str, type]) -> list[str]:
    if not isinstance(given, dict):
        return [f"{where} is no object"]
    missing = [f"{where}{key} is missing" for key in required if key not in given]
    return missing + [
        f"{where}{key} is no {types[key].__name__}"
        for key, value in given.items()
        if key in types and type(value) is not types[key]
    ]


def test_both_metadata_files_are_the_same_bytes_and_no_links():
    copies = [ROOT / "metadata.json", ROOT / "configs" / "metadata.json"]

    assert copies[0].read_bytes() == copies[1].read_bytes()
    assert not any(path.is_symlink() for path in copies)


def test_version_is_the_same_in_metadata_changelog_and_pyproject():
    newest = re.search(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)

    assert newest is not None
    assert METADATA["version"] == newest[1] == PROJECT["version"]
    assert METADATA["version"] in METADATA["changelog"]


@pytest.mark.parametrize("key", [*TEXT, "name", "intended_use"])
def test_texts_that_the_schema_or_a_consumer_reads_are_there(key):
    assert isinstance(METADATA[key], str)
    assert METADATA[key].strip()


@pytest.mark.parametrize("key", ["version", "monai_version", "pytorch_version", "numpy_version"])
def test_versions_are_written_as_numbers_with_dots(key):
    assert re.fullmatch(r"\d+\.\d+\.\d+", METADATA[key])


# What breaks one rule each: where, and the value that is put there (None takes it away).
IMAGE = ("network_data_format", "inputs", "image")
BROKEN = [
    *(((key,), None) for key in REQUIRED),
    *(((key,), 1.5) for key in TYPES),
    (("references",), ["a book", 1.5]),
    *((("network_data_format", side), None) for side in ("inputs", "outputs")),
    *((("network_data_format", side), 1.5) for side in ("inputs", "outputs", "post_processed_outputs")),
    (("network_data_format", "post_processed_outputs"), {"pred": {}}),
    (("denoiser_data_format",), {"inputs": {}}),
    *(((*IMAGE, key), None) for key in TENSOR_REQUIRED),
    *(((*IMAGE, key), 1.5) for key in TENSOR_TYPES),
    ((*IMAGE, "spatial_shape"), [1.5]),
    ((*IMAGE, "value_range"), ["-1"]),
]


def broken(where: tuple[str, ...], value: object) -> dict:
    metadata = copy.deepcopy(METADATA)
    *rooms, key = where
    room = metadata
    for name in rooms:
        room = room[name]
    room[key] = value
    if value is None:
        del room[key]
    return metadata


def test_the_metadata_break_no_rule_of_the_schema():
    assert faults(METADATA) == []


@pytest.mark.parametrize(("where", "value"), BROKEN)
def test_a_broken_rule_of_the_schema_is_found(where, value):
    found = faults(broken(where, value))

    assert where[-1] in found[0]


@pytest.mark.skipif(not SCHEMA, reason="needs the schema as a file: CTPA_VQGAN_METADATA_SCHEMA=FILE")
def test_the_real_schema_refuses_what_these_rules_refuse():
    jsonschema = pytest.importorskip("jsonschema")
    schema = jsonschema.Draft201909Validator(json.loads(Path(SCHEMA).read_text(encoding="utf-8")))

    assert schema.is_valid(METADATA)
    assert [(where, value) for where, value in BROKEN if schema.is_valid(broken(where, value))] == []


@pytest.mark.parametrize(("name", "tensor"), TENSORS)
def test_tensors_tell_modality_patches_and_channels_in_the_words_that_consumers_read(name, tensor):
    assert (tensor["modality"], tensor["is_patch_data"]) == ("CT", True)
    assert all(re.fullmatch(r"[\dnp*+\- ]+", str(size)) for size in tensor["spatial_shape"])
    assert all(key.isdigit() for key in tensor["channel_def"])


def test_consumers_find_image_and_pred_first():
    data_format = METADATA["network_data_format"]

    assert next(iter(data_format["inputs"])) == "image"
    assert next(iter(data_format["outputs"])) == "pred"


def test_references_are_a_list_of_texts_with_a_doi_or_an_arxiv_number():
    assert METADATA["references"]
    assert all(
        re.search(r"arXiv:\d{4}\.\d{5}|https://doi\.org/10\.", text) for text in METADATA["references"]
    )


def test_every_package_that_the_project_needs_is_named_with_a_version():
    core = {"torch", "monai", "numpy"}
    needed = {need.name for need in map(Requirement, PROJECT["dependencies"])} - core

    assert set(METADATA["required_packages_version"]) == needed
    assert all(isinstance(text, str) for text in METADATA["required_packages_version"].values())


def test_texts_tell_the_stride_the_window_and_the_licence_that_hold():
    config = yaml.safe_load((ROOT / "configs" / "train.yaml").read_text(encoding="utf-8"))
    stride = build_vqgan("lite", "ema", 64).stride

    assert f"one code per {stride} x {stride} x {stride} voxels" in METADATA["description"]
    assert [tensor["spatial_shape"] for _, tensor in TENSORS] == [[f"{stride}*n"] * 3] * 2
    assert f"(default {config['hu_min']:g} to {config['hu_max']:g} HU)" in METADATA["image_classes"]
    assert METADATA["license"] == PROJECT["license"]["text"] == "Apache-2.0"
    assert METADATA["intended_use"].startswith("Research only")


def test_the_tests_have_what_every_extra_needs():
    extras = dict(PROJECT["optional-dependencies"])
    dev = set(extras.pop("dev"))

    assert {name: needs for name, needs in extras.items() if not dev.issuperset(needs)} == {}


def test_tensors_state_the_range_and_channels_that_the_configs_make():
    for _, tensor in TENSORS:
        assert tensor["value_range"] == [-1, 1]  # of ScaleHUWindowd
        assert tensor["num_channels"] == len(tensor["channel_def"]) == 1
    assert set(METADATA["network_data_format"]) == {"inputs", "outputs"}


def test_every_named_version_fits_the_range_in_pyproject():
    ranges = {need.name: need.specifier for need in map(Requirement, PROJECT["dependencies"])}
    core = {"torch": "pytorch_version", "monai": "monai_version", "numpy": "numpy_version"}
    named = METADATA["required_packages_version"] | {name: METADATA[key] for name, key in core.items()}

    assert {name: text for name, text in named.items() if text not in ranges[name]} == {}
