"""What MONAI and other consumers ask of a bundle, on the files as they are; for the model zoo see beside."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import pytest
import torch
import yaml
from monai.bundle import create_workflow, load, load_bundle_config
from monai.utils import set_determinism

from bundle.networks.vqgan import build_vqgan

ROOT = Path(__file__).resolve().parents[2]
LITE = {"preset": "lite", "num_embeddings": 64}


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
    assert record["network"]["preset"] == "lite"  # of the second file


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


def test_load_fills_a_network_that_is_given_and_says_that_it_cannot_build_one(copy, network):
    place = {"name": "ctpa_vqgan", "bundle_dir": str(copy.parent)}

    filled = load(model=build_vqgan("lite", "ema", 64), key_in_ckpt="model", **place)
    with pytest.warns(UserWarning, match="inference.json, return state dict instead"):
        content = load(workflow_type="inference", **place)

    expected = network.state_dict()
    for state in (filled.state_dict(), content["model"]):
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_consumers_that_read_a_folder_or_a_zip_find_metadata_and_configs(copy, archive):
    for bundle in (copy, archive):
        parser = load_bundle_config(str(bundle), "inference.yaml")

        assert parser.get("_meta_::name") == "CTPA VQ-GAN"
        assert parser.get("network_def::_target_") == "bundle.networks.vqgan.build_vqgan"
