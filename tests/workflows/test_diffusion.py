"""A latent diffusion model of seconds, on volumes that the real encode wrote: the latents serve."""

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from bundle.checkpoints.file import NETWORK_SETTINGS, read_checkpoint, write_checkpoint
from bundle.data.latents.dataset import LatentDataset
from bundle.data.latents.statistics import read_statistics
from bundle.networks.denoiser import build_denoiser
from bundle.networks.fingerprint import fingerprint

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "latents.md").read_text(encoding="utf-8")
CONFIG = yaml.safe_load((ROOT / "configs" / "train_diffusion.yaml").read_text(encoding="utf-8"))
SMALL = {
    **{"patch_size": [32, 32, 32], "diffusion_channels": [32, 32], "timesteps": 25, "learning_rate": 1e-3},
    **{"max_epochs": 1, "epoch_length": 20, "validation_patches": 4},
}


@pytest.fixture(scope="module")
def folder(python, dataset, checkpoint, tmp_path_factory):
    """The VQ-GAN, codes of three patients, and what a run leaves; of which p0 validates."""
    folder = tmp_path_factory.mktemp("diffusion")
    (folder / "model.pt").write_bytes(checkpoint.read_bytes())
    model = {"ckpt_path": folder / "model.pt"}
    python.run("encode", dataset_dir=dataset, output_dir=folder / "codes", **model).expect_success()
    settings = {"dataset_dir": folder / "codes", "output_dir": folder / "run", **model, **SMALL}
    python.run("diffusion", **settings).expect_success()
    return folder


@pytest.mark.slow
def test_the_noise_is_predicted_better_than_by_zero_for_training_and_other_patients(folder):
    figures = json.loads((folder / "run" / "run.json").read_text(encoding="utf-8"))["figures"]

    assert figures.keys() == {"train/noise_mse", "val/noise_mse"}
    assert all(0 < value < 0.9 for value in figures.values()), figures


@pytest.mark.slow
def test_the_sample_is_a_ct_volume_in_the_place_of_the_first_validation_patch(folder, network):
    sample = nib.load(folder / "run" / "sample.nii.gz")
    voxels = np.asarray(sample.dataobj)
    case = {"image": str(folder / "codes" / "p0" / "ct_codes.npz")}
    seen = LatentDataset([case], folder / "c", "codes", 32, network.code_vectors(), seed=CONFIG["seed"])

    assert (voxels.shape, voxels.dtype) == ((32, 32, 32), np.int16)
    assert -1000 <= voxels.min() < voxels.max() <= 1000
    np.testing.assert_allclose(sample.affine, seen[0]["affine"], rtol=1e-6)
    assert sample.header.get_zooms() == (1.0, 1.0, 2.0)


@pytest.mark.slow
def test_statistics_lie_beside_the_vqgan_that_they_belong_to_and_in_the_trained_model(folder, network):
    statistics = read_statistics(folder / "model_codes.json", "codes", fingerprint(network))
    content = read_checkpoint(folder / "run" / "checkpoints" / "last.pt")

    assert statistics.volumes == 2
    assert tuple(content["latent_statistics"]["mean"]) == statistics.mean
    build_denoiser(content["diffusion"]["channels"], 8, [32, 32, 32]).load_state_dict(content["model"])


@pytest.mark.slow
def test_another_vqgan_than_the_one_that_encoded_is_refused(python, folder, tmp_path, out):
    content = torch.load(folder / "model.pt", weights_only=True)
    content["model"]["encoder.blocks.0.conv.bias"] += 1e-3
    write_checkpoint(tmp_path / "tuned.pt", content)
    settings = {"dataset_dir": folder / "codes", "ckpt_path": tmp_path / "tuned.pt", "output_dir": out}

    ended = python.run("diffusion", **settings, **SMALL)
    ended.expect_refusal("ct_codes.npz", "encoded by another model", output_dir=out)


@pytest.mark.slow
def test_the_code_of_the_page_runs_on_what_its_commands_leave(folder, dataset, monkeypatch):
    monkeypatch.chdir(folder)
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    for name, path in {
        **{"FILE": "model.pt", "CODES": "codes", "OUT": "run"},
        "VOLUME": str(dataset / "p0" / "ct.nii.gz"),
    }.items():
        code = re.sub(rf'"{name}\b', f'"{path}', code)

    names: dict = {}
    exec(compile(code, "docs/latents.md", "exec"), names)

    recon = np.asarray(nib.load(folder / "recon.nii.gz").dataobj)
    assert recon.shape == (48, 48, 40) and np.array_equal(recon, names["hu"][0].numpy())
    assert names["batch"]["image"].shape == (4, 8, 8, 8, 8)
    another = nib.load(folder / "run" / "another_sample.nii.gz")
    np.testing.assert_allclose(another.affine, names["place"]["affine"], rtol=1e-6)


def test_the_page_tells_every_setting_with_its_default():
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", PAGE, re.MULTILINE))
    settings = {
        name: value
        for name, value in CONFIG.items()
        if isinstance(value, int | float | None)
        or (isinstance(value, str) and not value.startswith("$"))
        or (isinstance(value, list) and isinstance(value[0], int))
    }
    shared = {"bundle_root", "trains_vqgan", "tile_size", "halo", *NETWORK_SETTINGS}

    told = {name: yaml.safe_load(text) for name, text in rows.items()}
    assert told == {name: value for name, value in settings.items() if name not in shared}
