import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
METADATA = json.loads((ROOT / "metadata.json").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TENSORS = [
    (f"{side}.{name}", tensor)
    for side, tensors in METADATA["network_data_format"].items()
    for name, tensor in tensors.items()
]
# The rules of meta_schema_20240725.json that a bundle like this one can break, as a list of our own.
TEXT = "schema version monai_version pytorch_version numpy_version task description authors copyright".split()
TENSOR_TYPES = {
    "type": str,
    "format": str,
    "modality": str,
    "num_channels": int,
    "spatial_shape": list,
    "dtype": str,
    "value_range": list,
    "is_patch_data": bool,
    "channel_def": dict,
}


def test_both_metadata_files_are_the_same_bytes_and_no_links():
    copies = [ROOT / "metadata.json", ROOT / "configs" / "metadata.json"]

    assert copies[0].read_bytes() == copies[1].read_bytes()
    assert not any(path.is_symlink() for path in copies)


def test_version_is_the_same_in_metadata_changelog_and_pyproject():
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)

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


@pytest.mark.parametrize(("name", "tensor"), TENSORS)
def test_tensors_state_what_the_schema_requires(name, tensor):
    wrong = {
        key: tensor.get(key) for key, kind in TENSOR_TYPES.items() if not isinstance(tensor.get(key), kind)
    }

    assert not wrong, f"{name}: {wrong}"
    assert all(isinstance(value, int | float) for value in tensor["value_range"])
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
