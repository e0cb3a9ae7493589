"""What only a GPU can show: `python -m pytest -m gpu` where there is one, skipped elsewhere."""

import copy
import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from bundle.inferers.halo import HaloInferer
from bundle.networks.vqgan import VQGAN, build_vqgan
from tests.workflows.test_resume import SETTINGS, content_of

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
OVERLAYS = ["configs/train_with_discriminator.yaml", "configs/smoke.yaml"]


@pytest.fixture
def image():
    """Something with structure, whose sides no tile divides."""
    coarse = torch.randn(1, 1, 14, 12, 17, device="cuda")
    return nn.functional.interpolate(coarse, size=(168, 140, 204), mode="trilinear").clamp(-1, 1)


@pytest.fixture
def full_float32(monkeypatch):
    """As configs/inference.yaml sets it: float32 means float32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def started(preset: str, image: torch.Tensor, device: str = "cuda") -> VQGAN:
    """A network whose codebook has seen the image."""
    torch.manual_seed(0)
    network = build_vqgan(preset, "ema", 1024).to(device)
    with torch.no_grad():
        network.quantizer.initialize(network.encode_latent(image.to(device)))
    return network.eval()


@pytest.mark.parametrize("preset", ["lite", "default"])
def test_tiles_equal_the_whole(preset, image, full_float32):
    network = started(preset, image)
    with torch.no_grad():
        whole, tiled = (HaloInferer(size).encode(image, network) for size in (1024, 64))
        assert (whole != tiled).float().mean() <= 1e-5  # where two codes are equally near
        decoded = [HaloInferer(size).decode(whole, network) for size in (1024, 64)]
    assert (decoded[0] - decoded[1]).abs().max() <= 1e-5 * 2


def test_slabs_equal_tiles(image, full_float32, caplog):
    network = started("default", image)
    with torch.no_grad(), caplog.at_level("INFO"):
        found, expected = HaloInferer("auto")(image, network), HaloInferer(64)(image, network)
    assert "slabs of" in caplog.text
    assert (found - expected).abs().max() <= 1e-4


def test_a_gpu_gives_what_the_cpu_gives(image, full_float32):
    small = image[..., :96, :64, :64]
    network = started("lite", small)
    there = copy.deepcopy(network).cpu()
    with torch.no_grad():
        latent, indices = there.encode_latent(small.cpu()), network.encode(small).cpu()
        expected = there.quantizer.quantize(latent)
        # where they differ, two codes are equally near
        distances = [
            (there.quantizer.indices_to_codes(i) - latent).square().sum(1) for i in (indices, expected)
        ]
        torch.testing.assert_close(*distances, rtol=1e-4, atol=1e-6)
        assert (indices != expected).float().mean() <= 1e-3
        assert (network.decode(indices.cuda()).cpu() - there.decode(indices)).abs().max() <= 1e-4


def test_the_codebook_computes_in_float32_under_autocast(image):
    network = started("lite", image)
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        latent = network.encode_latent(image)
        found = network.quantizer(latent)
    with torch.no_grad():
        expected = network.quantizer(latent.float())
    assert latent.dtype == torch.bfloat16
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.commitment_loss, expected.commitment_loss)


def test_gradients_in_bfloat16_point_where_those_in_float32_do(image):
    network = started("default", image).train()
    patch = image[..., :64, :64, :64]
    gradients = []
    for half in (False, True):
        network.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            result = network.reconstruct(patch)
        loss = (result.image - patch).abs().mean() + 0.25 * result.commitment_loss
        loss.backward()
        gradients.append(torch.cat([part.grad.flatten() for part in network.parameters()]))
        network.quantizer.discard()
    assert result.image.dtype == torch.float32
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


def test_out_of_memory_halves_the_tiles_and_changes_nothing(image, full_float32, caplog):
    network = started("default", image)
    expected = HaloInferer(64)(image, network)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**30) / total)
    try:
        with torch.no_grad():
            found = HaloInferer(1024)(image, network)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory with tiles of" in caplog.text
    assert (found - expected).abs().max() <= 1e-4


def start(folder: Path, dataset: Path, killing: dict | None = None, **settings: object) -> tuple[int, str]:
    """An adversarial run of the real configs in bf16, with kernels that repeat themselves."""
    first = ["$torch.use_deterministic_algorithms(True, warn_only=True)"]
    first += ["$setattr(torch.backends.cudnn, 'benchmark', False)"]
    overlay = folder.parent / f"{folder.name}_overlay.json"
    overlay.write_text(json.dumps({"+initialize": [*first, *([killing] if killing else [])]}))
    files = ["configs/train.yaml", *OVERLAYS, str(overlay)]
    words = ["run", "--config_file", str(files), "--num_embeddings", "64", "--patch_size", "[24, 24, 24]"]
    chosen = SETTINGS | {"video_gan_weight": 0.5, "dataset_dir": dataset, "output_dir": folder} | settings
    for name, value in chosen.items():
        words += [f"--{name}", str(value)]
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", *words],
        cwd=ROOT,
        env={**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=300,
    )
    return done.returncode, done.stdout[-3000:]


def test_a_run_killed_on_a_gpu_and_resumed_ends_as_one_that_was_not(dataset, tmp_path):
    killing = {"_target_": "tests.workflows.killing.arm", "moment": "writing", "count": 2}
    code, output = start(tmp_path / "whole", dataset)
    assert code == 0, output

    assert (
        start(tmp_path / "killed", dataset, {**killing, "number": int(signal.SIGKILL)})[0] == -signal.SIGKILL
    )
    code, output = start(tmp_path / "killed", dataset)

    assert code == 0, output
    found, expected = content_of(tmp_path / "killed"), content_of(tmp_path / "whole")
    for part in ("model", "discriminators", "optimizers", "schedules", "trainer"):
        torch.testing.assert_close(found[part], expected[part], rtol=0, atol=0)


def test_a_run_that_does_not_fit_shrinks_and_goes_on(dataset, tmp_path):
    limit = {
        "_target_": "torch.cuda.set_per_process_memory_fraction",
        "fraction": 1.5 * 2**30 / torch.cuda.get_device_properties(0).total_memory,
    }
    settings = {"batch_size": 16, "micro_batch_size": 16, "patch_size": [64, 64, 64], "oom_policy": "degrade"}

    code, output = start(tmp_path / "run", dataset, limit, **settings)

    assert code == 0, output
    assert "micro-batch" in (tmp_path / "run" / "training.log").read_text(encoding="utf-8")
    with (tmp_path / "run" / "metrics.csv").open(newline="", encoding="utf-8") as file:
        assert [row for row in csv.DictReader(file) if row["train/disc_loss"]]
