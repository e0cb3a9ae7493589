"""The model that ships: the file that its card describes, what it reconstructs, and what it never saw."""

import hashlib
import re

import numpy as np
import pytest
import torch

from bundle import load_model
from bundle.checkpoints.file import INSTALLED_MODEL, read_checkpoint
from bundle.data.volumes.phantom import write_phantom
from bundle.data.volumes.reading import read_volume
from bundle.metrics.reconstruction import reconstruction_figures
from scripts.developer.shipped_model import COMMON, DEVELOPMENT, TEST, TRAINING
from tests.guide import ROOT

CARD = INSTALLED_MODEL.with_name("MODEL_CARD.md").read_text(encoding="utf-8")
SHA256 = "a85b115f317c1ff810ed10828f59ff56b2ed8ab6cc060370eeba250103c1a8a1"
PSNR_DB = 33.41
UNSEEN = {
    "05d2a4ebf00bf97c": "lidc_idri_0001",
    "cd0f0d06b4899419": "qin_lsc_0028",
    "df6694584499fe2d": "lungfcp_01_0001",
}
"""Fingerprints of the voxels of the patients that it must not have seen."""
VALIDATION = ROOT / "tests" / "data" / "lidc_idri_0001_validation.nii.gz"


@pytest.fixture(scope="module")
def content():
    return read_checkpoint(INSTALLED_MODEL)


def test_the_file_is_the_one_that_the_card_describes(content):
    assert hashlib.sha256(INSTALLED_MODEL.read_bytes()).hexdigest() == SHA256
    assert SHA256 in CARD
    assert content["name"].split(",")[0] in CARD
    assert {name: content["network"][name] for name in ("preset", "num_embeddings")} == {
        name: COMMON[name] for name in ("preset", "num_embeddings")
    }


def test_the_model_with_discriminators_differs_in_its_training_only(content):
    path = INSTALLED_MODEL.with_name("model_adversarial.pt")
    other = read_checkpoint(path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert sha256 in CARD and other["name"].split(",")[0] in CARD
    assert other["network"] == content["network"] and other["trained_on"] == content["trained_on"]
    assert any((other["model"][name] != value).any() for name, value in content["model"].items())


def test_it_reconstructs_a_patient_that_it_has_not_seen_as_well_as_the_card_says():
    image = torch.from_numpy(read_volume(VALIDATION).voxels)
    recon = load_model(device="cpu").reconstruct(VALIDATION)[0].as_subclass(torch.Tensor)
    assert reconstruction_figures(image, recon, -1000, 1000).psnr == pytest.approx(PSNR_DB, abs=0.1)
    assert f"{PSNR_DB:.2f} dB" in CARD


@pytest.mark.slow
def test_the_seam_scores_of_the_guide_are_measured_by_its_code(tmp_path, monkeypatch, capsys):
    guide = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    # a whole chest: on a scan as small as those of the tests, errors vary by more than 3 HU
    write_phantom(tmp_path / "ct.nii.gz", (256, 256, 160), np.diag([1.2, 1.2, 1.5, 1]))
    (tmp_path / "models").symlink_to(INSTALLED_MODEL.parent)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/evaluation.md", "exec"), {})
    exact, raised, small_halo = map(float, capsys.readouterr().out.split())
    assert exact < 1.01 and min(raised, small_halo) > 1.02


def test_no_patient_of_the_test_or_of_the_choice_of_recipes_was_trained_on(content):
    assert not set(TRAINING) & {*DEVELOPMENT, *TEST}
    trained_on = content["trained_on"]
    assert trained_on["patients"] == []
    assert len(trained_on["voxels"]) == len(TRAINING)
    assert not set(UNSEEN) & set(trained_on["voxels"])
    for name in TRAINING:
        assert f"`{name}`" in CARD
