"""What MONAI, the model zoo's checks and other consumers ask of a bundle, on the files as they are."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import pytest
import torch
import yaml
from monai.bundle import (
    ConfigWorkflow,
    create_workflow,
    load_bundle_config,
    verify_metadata,
    verify_net_in_out,
)
from monai.bundle.scripts import download_large_files
from monai.utils import set_determinism

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("bundle", "configs", "scripts", "transforms")
FILES = ("metadata.json", "README.md", "LICENSE")
SCHEMA = os.environ.get("CTPA_VQGAN_METADATA_SCHEMA", "")
LITE = {"preset": "lite", "num_embeddings": 64}


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """The repository as a zip with one folder in it, as archives of a release are."""
    path = tmp_path_factory.mktemp("archive") / "ctpa_vqgan.zip"
    with zipfile.ZipFile(path, "w") as content:
        for name in FILES:
            content.write(ROOT / name, f"ctpa_vqgan/{name}")
        for file in (file for room in ROOMS for file in (ROOT / room).rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                content.write(file, f"ctpa_vqgan/{file.relative_to(ROOT).as_posix()}")
    return path


@pytest.fixture(scope="module")
def copy(archive, checkpoint, tmp_path_factory) -> Path:
    """The archive unpacked by Python, with a model of random weights installed."""
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(archive) as content:
        content.extractall(folder)
    (folder / "ctpa_vqgan" / "models").mkdir()
    shutil.copy(checkpoint, folder / "ctpa_vqgan" / "models" / "model.pt")
    return folder / "ctpa_vqgan"


def test_an_unpacked_archive_runs_from_another_folder_with_an_args_file(copy, dataset, tmp_path):
    configs = ["inference.yaml", "smoke.yaml"]
    arguments = {
        "config_file": [str(copy / "configs" / name) for name in configs],
        "bundle_root": str(copy),
        "dataset_dir": str(dataset / "p0"),
        "num_embeddings": 1,
    }
    (tmp_path / "args.yaml").write_text(yaml.safe_dump(arguments), encoding="utf-8")
    words = [sys.executable, "-m", "monai.bundle", "run", "--args_file", "args.yaml"]
    words += ["--num_embeddings", "64", "--output_dir", "out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("PYTHONPATH", None)

    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8", "timeout": 240}
    done = subprocess.run(words, cwd=tmp_path, env=environment, **both)

    assert done.returncode == 0, done.stdout[-3000:]
    assert (
        nib.load(tmp_path / "out" / "ct_recon.nii.gz").shape == nib.load(dataset / "p0" / "ct.nii.gz").shape
    )
    record = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    assert record["overrides"]["num_embeddings"] == 64
    assert record["config"]["preset"] == "lite"  # of the second file


@pytest.mark.parametrize("n", [4, 6])
def test_the_network_takes_and_gives_what_the_metadata_say(n, monkeypatch):
    monkeypatch.chdir(ROOT)

    verify_net_in_out(
        net_id="network_def",
        meta_file="metadata.json",
        config_file="configs/inference.yaml",
        device="cpu",
        n=n,
        **LITE,
    )


def test_create_workflow_gives_a_workflow_that_builds(copy, dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(copy)
    paths = {"dataset_dir": str(dataset), "output_dir": str(tmp_path / "out")}

    workflow = create_workflow(
        config_file="configs/inference.yaml", workflow_type="infer", logging_file=False, **LITE, **paths
    )

    try:
        assert workflow.check_properties() == []
        assert workflow.version == json.loads((ROOT / "metadata.json").read_text(encoding="utf-8"))["version"]
        assert workflow.network_def(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 1, 16, 16, 16)
        assert sorted(case["image"][-12:] for case in workflow.dataset.data) == [
            f"p{number}/ct.nii.gz" for number in range(3)
        ]
    finally:
        set_determinism(None)


def test_consumers_that_read_a_folder_or_a_zip_find_metadata_and_configs(copy, archive):
    for bundle in (copy, archive):
        parser = load_bundle_config(str(bundle), "inference.yaml")

        assert parser.get("_meta_::name") == "CTPA VQ-GAN"
        assert parser.get("network_def::_target_") == "bundle.networks.vqgan.build_vqgan"


@pytest.mark.skipif(not SCHEMA, reason="needs the schema as a file: CTPA_VQGAN_METADATA_SCHEMA=FILE")
def test_the_real_schema_accepts_the_metadata(tmp_path):
    pytest.importorskip("jsonschema")
    shutil.copy(SCHEMA, tmp_path / "schema.json")

    verify_metadata(str(ROOT / "metadata.json"), filepath=str(tmp_path / "schema.json"))


# --- what the model zoo's verify_bundle does, in its order


def test_zoo_1_a_large_file_is_fetched_and_its_checksum_compared(copy, checkpoint, tmp_path):
    shutil.copytree(copy, tmp_path / "ctpa_vqgan", ignore=shutil.ignore_patterns("models"))
    large = {
        "path": "models/model.pt",
        "url": checkpoint.as_uri(),
        "hash_val": hashlib.md5(checkpoint.read_bytes()).hexdigest(),
        "hash_type": "md5",
    }
    listing = tmp_path / "ctpa_vqgan" / "large_files.yml"
    listing.write_text(yaml.safe_dump({"large_files": [large]}), encoding="utf-8")

    download_large_files(bundle_path=str(tmp_path / "ctpa_vqgan"))

    fetched = tmp_path / "ctpa_vqgan" / "models" / "model.pt"
    assert fetched.read_bytes() == checkpoint.read_bytes()


def test_zoo_2_and_3_necessary_and_preferred_files_are_there(copy):
    names = ["configs/metadata.json", "LICENSE", "configs/inference.yaml", "models/model.pt"]

    assert [name for name in names if not (copy / name).is_file()] == []


def test_zoo_4_the_version_has_its_line_in_the_changelog(copy):
    metadata = json.loads((copy / "configs" / "metadata.json").read_text(encoding="utf-8"))

    assert metadata["changelog"][metadata["version"]].strip()


def test_zoo_6_inference_has_every_property(copy, dataset, monkeypatch):
    monkeypatch.chdir(copy)
    settings = {"workflow_type": "inference", "logging_file": False, "dataset_dir": str(dataset), **LITE}
    workflow = ConfigWorkflow(config_file="configs/inference.yaml", **settings)
    workflow.initialize()

    try:
        assert workflow.check_properties() == []
    finally:
        set_determinism(None)


def test_zoo_rules_for_files_a_single_one_is_small_and_names_no_personal_folder(copy):
    files = [path for path in copy.rglob("*") if path.is_file() and path.parent.name != "models"]

    assert [path for path in files if path.stat().st_size > 25e6] == []
    for path in (copy / "configs").glob("*.yaml"):
        root = yaml.safe_load(path.read_text(encoding="utf-8")).get("bundle_root", ".")
        assert root == "."


def test_hugging_face_would_read_the_licence_and_publish_the_root_readme(copy):
    licence = (copy / "LICENSE").read_text(encoding="utf-8")

    assert "Apache License" in licence
    assert "Version 2.0" in licence
    assert re.match(r"# ctpa_vqgan\n", (copy / "README.md").read_text(encoding="utf-8"))
    assert not (copy / "docs" / "README.md").exists()
