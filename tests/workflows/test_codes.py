"""Encode and decode whole files: equal to reconstruction, without the original."""

import shutil

import nibabel as nib
import numpy as np
import pytest
import torch

from bundle.checkpoints.file import network_settings, write_checkpoint
from bundle.data.latents.file import read_latent_file
from bundle.data.volumes.phantom import write_phantom
from bundle.networks.vqgan import build_vqgan

ROTATED = np.array(
    [[0.0, -0.79, 0.0, 31.25], [0.69, 0.0, 0.26, -97.5], [0.12, 0.0, -1.48, 12.125], [0.0, 0.0, 0.0, 1.0]]
)


@pytest.fixture(scope="module")
def folders(python, checkpoint, tmp_path_factory):
    """Codes with latents, what inference.yaml makes of the same scans, and the scans gone."""
    folder = tmp_path_factory.mktemp("codes")
    write_phantom(folder / "scans" / "p1" / "ct.nii.gz", (47, 38, 33), ROTATED, seed=1)
    write_phantom(
        folder / "scans" / "p2" / "ct.nii.gz", (36, 40, 32), np.diag([-0.7, -0.7, 1.5, 1.0]), seed=2
    )
    both = {"dataset_dir": folder / "scans", "ckpt_path": checkpoint}
    python.run("inference", output_dir=folder / "recon", **both).expect_success()
    python.run("encode", output_dir=folder / "codes", keep_latents="true", **both).expect_success()
    shutil.rmtree(folder / "scans")
    return folder


@pytest.fixture(scope="module")
def other_window(tmp_path_factory):
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("other") / "model.pt"
    network = build_vqgan("lite", "ema", 64)
    settings = network_settings("lite", "ema", 64, -1000, 2000)
    write_checkpoint(path, {"model": network.state_dict(), "network": settings})
    return path


def test_decoding_gives_the_bytes_of_reconstruction_without_the_original(python, folders, checkpoint, out):
    python.run("decode", dataset_dir=folders / "codes", ckpt_path=checkpoint, output_dir=out).expect_success()
    for patient in ("p1", "p2"):
        name = f"{patient}/ct_recon.nii.gz"
        assert (out / name).read_bytes() == (folders / "recon" / name).read_bytes()


def test_decoding_latents_differs_only_where_float16_moved_a_code(python, folders, checkpoint, out):
    settings = {"dataset_dir": folders / "codes", "ckpt_path": checkpoint, "output_dir": out}
    python.run("decode", from_latents="true", **settings).expect_success()
    decoded, expected = (
        np.asarray(nib.load(folder / "p2" / "ct_recon.nii.gz").dataobj) for folder in (out, folders / "recon")
    )
    assert np.mean(decoded != expected) < 0.05


def test_latents_quantize_to_the_codes_beside_them(folders, network):
    volume = read_latent_file(folders / "codes" / "p2" / "ct_codes.npz")
    indices = network.quantizer.quantize(torch.from_numpy(volume.latents.astype(np.float32))[None])[0]
    assert np.mean(indices.numpy() != volume.indices) < 0.01
    assert volume.record.shape == (36, 40, 32)


def test_codes_of_another_window_are_refused_before_anything_is_written(python, folders, other_window, out):
    settings = {"dataset_dir": folders / "codes", "ckpt_path": other_window, "output_dir": out}
    ended = python.run("decode", hu_max=2000.0, **settings)
    ended.expect_refusal("ct_codes.npz", "other settings; decode it with --hu_max 1000.0", output_dir=out)


def test_codes_of_the_same_network_with_other_weights_are_refused(python, folders, checkpoint, tmp_path, out):
    content = torch.load(checkpoint, weights_only=True)
    content["model"]["encoder.blocks.0.conv.bias"] += 1e-3
    write_checkpoint(tmp_path / "tuned.pt", content)
    settings = {"dataset_dir": folders / "codes", "ckpt_path": tmp_path / "tuned.pt", "output_dir": out}
    ended = python.run("decode", **settings)
    ended.expect_refusal("ct_codes.npz", "encoded by another model", output_dir=out)


def test_a_folder_without_codes_says_how_to_make_them(python, checkpoint, tmp_path, out):
    ended = python.run("decode", dataset_dir=tmp_path, ckpt_path=checkpoint, output_dir=out)
    ended.expect_refusal("holds no *_codes.npz; make them with configs/encode.yaml", output_dir=out)
