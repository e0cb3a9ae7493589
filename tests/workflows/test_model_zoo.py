"""What the model zoo's ci/verify_bundle.py checks, in its order, and what Hugging Face gets.

`CTPA_VQGAN_MODEL_ZOO=CHECKOUT` and `CTPA_VQGAN_METADATA_SCHEMA=FILE` run the real one besides.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from monai.apps.utils import HashCheckError
from monai.bundle import ConfigWorkflow, ckpt_export, push_to_hf_hub, verify_metadata, verify_net_in_out
from monai.bundle.scripts import download_large_files
from monai.utils import set_determinism

from bundle.checkpoints.file import network_settings, write_checkpoint
from bundle.networks.vqgan import build_vqgan

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "publish.md").read_text(encoding="utf-8")
SCHEMA = os.environ.get("CTPA_VQGAN_METADATA_SCHEMA", "")
MODEL_ZOO = os.environ.get("CTPA_VQGAN_MODEL_ZOO", "")


@pytest.fixture
def published(copy, tmp_path) -> Path:
    """A copy of its own, to be written into."""
    return shutil.copytree(copy, tmp_path / "ctpa_vqgan")


def test_zoo_1_a_large_file_is_fetched_and_its_checksum_compared(published, checkpoint, monkeypatch):
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    listing = yaml.safe_load(example)
    (large,) = listing["large_files"]
    large |= {"url": checkpoint.as_uri(), "hash_val": hashlib.sha256(checkpoint.read_bytes()).hexdigest()}
    (published / "large_files.yml").write_text(yaml.safe_dump(listing), encoding="utf-8")
    (published / "models" / "model.pt").unlink()
    monkeypatch.chdir(published)

    assert "python -m monai.bundle download_large_files\n" in PAGE
    download_large_files()

    assert (published / "models" / "model.pt").read_bytes() == checkpoint.read_bytes()
    (published / "models" / "model.pt").unlink()
    large["hash_val"] = "0" * 64
    (published / "large_files.yml").write_text(yaml.safe_dump(listing), encoding="utf-8")
    with pytest.raises(HashCheckError):
        download_large_files()


def test_zoo_2_and_3_necessary_and_preferred_files_are_there(copy):
    names = ["configs/metadata.json", "LICENSE", "configs/inference.yaml", "models/model.pt"]

    assert [name for name in names if not (copy / name).is_file()] == []


def test_zoo_4_the_version_has_its_line_in_the_changelog(copy):
    metadata = json.loads((copy / "configs" / "metadata.json").read_text(encoding="utf-8"))

    assert metadata["changelog"][metadata["version"]].strip()


# Check 5 without the schema: tests/test_metadata.py.
@pytest.mark.filterwarnings("ignore:No hash value provided")
@pytest.mark.skipif(not SCHEMA, reason="needs the schema as a file: CTPA_VQGAN_METADATA_SCHEMA=FILE")
def test_zoo_5_the_real_schema_accepts_the_metadata(tmp_path):
    pytest.importorskip("jsonschema")
    shutil.copy(SCHEMA, tmp_path / "schema.json")

    verify_metadata(str(ROOT / "metadata.json"), filepath=str(tmp_path / "schema.json"))


def test_zoo_6_inference_has_every_property(copy, dataset, monkeypatch):
    monkeypatch.chdir(copy)
    settings = {"workflow_type": "inference", "logging_file": False, "dataset_dir": str(dataset)}
    workflow = ConfigWorkflow(config_file="configs/inference.yaml", **settings)
    workflow.initialize()

    try:
        assert workflow.check_properties() == []
    finally:
        set_determinism(None)


@pytest.mark.parametrize("n", [1, 4, 6])
def test_zoo_7_the_network_takes_and_gives_what_the_metadata_say(copy, n):
    files = {"meta_file": str(copy / "metadata.json"), "config_file": str(copy / "configs/inference.yaml")}

    verify_net_in_out(net_id="network_def", bundle_root=str(copy), device="cpu", n=n, **files)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_zoo_8_the_model_is_scripted_as_it_lies_there_and_loads(copy, tmp_path, network):
    files = {"meta_file": str(copy / "metadata.json"), "config_file": str(copy / "configs/inference.yaml")}
    files |= {"ckpt_file": str(copy / "models" / "model.pt"), "filepath": str(tmp_path / "model.ts")}

    ckpt_export(net_id="network_def", bundle_root=str(copy), **files)

    image = torch.rand(1, 1, 24, 16, 20) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(
            torch.jit.load(tmp_path / "model.ts")(image), network(image), rtol=0, atol=1e-5
        )


@pytest.mark.skipif(not MODEL_ZOO, reason="needs a checkout: CTPA_VQGAN_MODEL_ZOO=FOLDER")
@pytest.mark.parametrize("mode", ["min", "regular", "full"])
@pytest.mark.parametrize(("preset", "num_embeddings"), [("default", 16384), ("lite", 1024)])
def test_the_real_verify_bundle_passes(published, mode, preset, num_embeddings):
    settings = network_settings(preset, "ema", num_embeddings, -1000, 1000)
    state = build_vqgan(preset, "ema", num_embeddings).state_dict()
    write_checkpoint(published / "models" / "model.pt", {"model": state, "network": settings})
    (published / "eval").mkdir()
    shutil.copy(SCHEMA, published / "eval" / "schema.json")
    (published.parent / "model_info.json").write_text("{}", encoding="utf-8")
    words = [sys.executable, "ci/verify_bundle.py", "-b", published.name, "-p", str(published.parent)]

    done = subprocess.run([*words, "-m", mode], cwd=MODEL_ZOO, capture_output=True, encoding="utf-8")

    assert done.returncode == 0, done.stderr[-3000:]
    assert ("export weights into TorchScript module successfully" in done.stdout) == (mode == "full")


def test_zoo_rules_for_files_a_single_one_is_small_and_names_no_personal_folder(copy):
    files = [path for path in copy.rglob("*") if path.is_file() and path.parent.name != "models"]

    assert [path for path in files if path.stat().st_size > 25e6] == []
    for path in (copy / "configs").glob("*.yaml"):
        root = yaml.safe_load(path.read_text(encoding="utf-8")).get("bundle_root", ".")
        assert root == "."


class HubOnPaper:
    """Stands in for the network part of huggingface_hub and writes down what it is asked."""

    def __init__(self, asked: dict, token: str | None) -> None:
        self.asked = asked

    def create_repo(self, repo_id: str, private: bool | None, exist_ok: bool) -> None:
        self.asked["repo"] = (repo_id, private)

    def upload_folder(self, repo_id: str, folder_path: str) -> str:
        self.asked["card"] = (Path(folder_path) / "README.md").read_text(encoding="utf-8")
        return f"uploaded to {repo_id}"

    def create_tag(self, repo_id: str, tag: str, exist_ok: bool) -> None:
        self.asked["tag"] = tag


def test_hugging_face_gets_the_readme_as_a_card_with_licence_and_tags(published, monkeypatch):
    asked: dict = {}
    hub = SimpleNamespace(HfApi=lambda token: HubOnPaper(asked, token))
    monkeypatch.setattr("monai.bundle.scripts.huggingface_hub", hub)
    (line,) = re.findall(r"^python -m monai\.bundle push_to_hf_hub (.*)$", PAGE, re.MULTILINE)
    words = ["0.1.0" if word == "VERSION" else word for word in shlex.split(line)]
    given = {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    assert not (published / "docs" / "README.md").exists()
    assert "cp DIR/ctpa_vqgan/README.md DIR/ctpa_vqgan/docs/README.md\n" in PAGE
    shutil.copy(published / "README.md", published / "docs" / "README.md")

    answer = push_to_hf_hub(**given | {"bundle_dir": str(published.parent)})

    assert answer == "uploaded to OWNER/ctpa_vqgan"
    assert (asked["repo"], asked["tag"]) == (("OWNER/ctpa_vqgan", True), "0.1.0")
    _, facts, text = asked["card"].split("---\n", 2)
    assert yaml.safe_load(facts) == {
        "tags": ["monai", "medical"],
        "library_name": "monai",
        "license": "apache-2.0",
    }
    assert text == (ROOT / "README.md").read_text(encoding="utf-8")
