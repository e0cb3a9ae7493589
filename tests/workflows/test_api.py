"""Three lines of Python give what the configs write, voxel by voxel and header by header."""

from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from bundle import Model, load_model, save_volume
from bundle.api import ModelInputError
from bundle.checkpoints.file import CheckpointError, write_checkpoint
from bundle.data.latents.file import LatentFileError, read_latent_file, write_latent_file
from bundle.data.volumes.phantom import write_phantom
from bundle.data.volumes.reading import VolumeError

OBLIQUE = np.array([[0, -0.7, 0.1, 20], [0.8, 0, 0.05, -30], [0, 0.1, -1.5, 5], [0, 0, 0, 1.0]])


class Written(NamedTuple):
    """What the configs made of one scan."""

    scan: Path
    reconstruction: Path
    codes: Path


@pytest.fixture(scope="module")
def written(python, checkpoint, tmp_path_factory) -> Written:
    folder = tmp_path_factory.mktemp("api")
    scan = folder / "scans" / "p1" / "ct.nii.gz"
    write_phantom(scan, (47, 38, 33), OBLIQUE, seed=1)
    files = {"dataset_dir": folder / "scans", "ckpt_path": checkpoint}
    python.run("inference", output_dir=folder / "recon", **files).expect_success()
    settings = {"output_dir": folder / "codes", "keep_latents": "true"}
    python.run("encode", **settings, **files).expect_success()
    recon = folder / "recon" / "p1" / "ct_recon.nii.gz"
    return Written(scan, recon, folder / "codes" / "p1" / "ct_codes.npz")


@pytest.fixture(scope="module")
def model(checkpoint) -> Model:
    return load_model(checkpoint, "cpu")


def test_the_reconstruction_is_what_inference_writes(model, written, tmp_path):
    hu = model.reconstruct(written.scan)

    expected = nib.load(written.reconstruction)
    assert isinstance(hu, MetaTensor) and hu.dtype == torch.int16
    np.testing.assert_array_equal(hu[0].numpy(), np.asarray(expected.dataobj))
    np.testing.assert_array_equal(hu.affine.numpy(), nib.load(written.scan).affine)
    save_volume(hu, tmp_path / "again.nii.gz")
    assert (tmp_path / "again.nii.gz").read_bytes() == written.reconstruction.read_bytes()


def test_a_tensor_with_an_affine_gives_the_same_as_its_file(model, written):
    image = nib.load(written.scan)
    volume = MetaTensor(torch.from_numpy(np.asarray(image.dataobj).astype(np.float32))[None], image.affine)

    expected = model.reconstruct(str(written.scan))
    hu = model.reconstruct(volume)
    assert torch.equal(hu.as_tensor(), expected.as_tensor())
    np.testing.assert_array_equal(hu.affine.numpy(), image.affine)
    # other tiles sum in another order: a voxel between two whole HU may be rounded to the other one
    tiled = (model.reconstruct(volume, tile_size=[24, 16, 32]).as_tensor() - expected.as_tensor()).abs()
    assert tiled.max() <= 1 and tiled.float().mean() < 1e-3


def test_codes_are_what_encode_writes_and_decode_to_the_reconstruction(model, written, tmp_path):
    volume = model.encode(written.scan, keep_latents=True, patient="p1")
    expected = read_latent_file(written.codes)

    assert volume.record == expected.record
    np.testing.assert_array_equal(volume.indices, expected.indices)
    np.testing.assert_array_equal(volume.latents, expected.latents)
    write_latent_file(tmp_path / "ct_codes.npz", volume)
    for codes in (volume, tmp_path / "ct_codes.npz", str(written.codes)):
        save_volume(model.decode(codes), tmp_path / "decoded.nii.gz")
        assert (tmp_path / "decoded.nii.gz").read_bytes() == written.reconstruction.read_bytes()


def test_codes_of_another_model_and_what_is_no_volume_are_refused(
    model, network, checkpoint, tmp_path, written
):
    other = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    name = next(name for name in other if name.startswith("decoder."))
    other[name] += 1
    settings = {name: value for name, value in model.settings.items() if name != "preset"}
    write_checkpoint(tmp_path / "other.pt", {"model": other, "network": model.settings})
    write_checkpoint(tmp_path / "part.pt", {"model": other, "network": settings})

    with pytest.raises(LatentFileError, match="^ct: encoded by another model"):
        load_model(tmp_path / "other.pt", "cpu").decode(written.codes)
    with pytest.raises(CheckpointError, match="`network` must hold preset; use a checkpoint that training"):
        load_model(tmp_path / "part.pt")
    with pytest.raises(VolumeError, match="gone.nii.gz"):
        model.reconstruct(tmp_path / "gone.nii.gz")
    wrong = {
        r"one volume \(1, X, Y, Z\)": MetaTensor(torch.zeros(8, 8, 8)),
        "must hold finite HU": MetaTensor(torch.full((1, 8, 8, 8), torch.nan)),
        "must be a path or a MetaTensor": torch.zeros(1, 8, 8, 8),
    }
    for message, volume in wrong.items():
        with pytest.raises(ModelInputError, match=message):
            model.reconstruct(volume)
