"""The bundle's own MONAI Label app in a real server: requests as a client sends them."""

import gzip
import importlib.util
import json
import shutil
import struct
import time

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from tests.guide import ROOT

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("monailabel") is None, reason="needs MONAI Label: make test-label"
)
CASES = ("oblique", "straight")
TINY = {"max_epochs": 1, "epoch_length": 2, "patch_size": [24, 24, 24], "num_workers": 0, "val_split": 0.5}
GEOMETRY = ("sform_code", "qform_code", "pixdim", "xyzt_units", "srow_x", "srow_y", "srow_z", "quatern_b")


def volume(content: bytes, path) -> nib.Nifti1Image:
    path.write_bytes(content)
    return nib.load(path)


def detail(answer) -> str:
    return answer.json()["detail"]


def test_info_tells_an_image_to_image_model_and_a_trainer(server):
    info = server.get("/info/").json()

    model = info["models"]["ctpa_vqgan"]
    assert (model["type"], model["dimension"], model["labels"]) == ("others", 3, {"image": 0})
    assert model["version"] == info["version"]
    assert model["config"]["model_filename"] == ["model.pt"]
    smoke = yaml.safe_load((ROOT / "configs" / "smoke.yaml").read_text(encoding="utf-8"))
    assert info["trainers"]["ctpa_vqgan"]["config"]["epoch_length"] == smoke["epoch_length"]


@pytest.mark.parametrize("case", CASES)
def test_a_reconstruction_equals_that_of_monai_bundle_run_voxel_by_voxel(server, reference, tmp_path, case):
    answer = server.infer(case)

    assert answer.status_code == 200, answer.text
    served = volume(answer.content, tmp_path / "served.nii.gz")
    expected = nib.load(reference / f"{case}_recon.nii.gz")
    assert served.get_data_dtype() == np.int16
    assert np.ptp(served.dataobj) > 10  # untrained, but no constant
    np.testing.assert_array_equal(served.dataobj, expected.dataobj)


@pytest.mark.parametrize("case", CASES)
def test_the_geometry_is_that_of_the_input_to_the_last_bit(server, studies, tmp_path, case):
    served = volume(server.infer(case).content, tmp_path / "served.nii.gz")
    image = nib.load(studies / f"{case}.nii.gz")

    assert (served.affine == image.affine).all()
    assert [name for name in GEOMETRY if (served.header[name] != image.header[name]).any()] == []


def test_an_uploaded_file_gives_the_same_and_leaves_no_copy(server, studies, reference, tmp_path):
    answer = server.infer(upload=studies / "oblique.nii.gz", params='{"result_extension": ".nii"}')

    served = volume(answer.content, tmp_path / "served.nii")
    expected = nib.load(reference / "oblique_recon.nii.gz")
    np.testing.assert_array_equal(served.dataobj, expected.dataobj)
    assert server.left_over == []


def test_without_a_choice_of_output_both_the_volume_and_its_parameters_come_back(server):
    answer = server.infer("straight", output="all")

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("multipart/form-data")
    assert b'"latencies"' in answer.content


def lying_header() -> bytes:
    """A NIfTI header that declares 30000 x 30000 x 30000 voxels, and 1 kB behind it."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_sform(np.eye(4), code=1)
    block = bytearray(header.binaryblock)
    block[40:56] = struct.pack("<8h", 3, 30000, 30000, 30000, 1, 1, 1, 1)
    block[108:112] = struct.pack("<f", 352)  # where voxels begin
    block[344:348] = b"n+1\0"
    return gzip.compress(bytes(block) + bytes(1024))


BAD_FILES = {
    "text.nii.gz": (b"no volume at all", "is not a readable NIfTI file"),
    "empty.nii.gz": (b"", "is not a readable NIfTI file"),
    "empty.nii": (b"", "is not a readable NIfTI file"),
    "huge.nii.gz": (lying_header(), "can hold; convert the scan again"),
    "picture.png": (b"\x89PNG\r\n\x1a\n", "must end in one of .nii.gz, .nii, .dcm"),
    "slice.dcm": (b"no DICOM", "upload.dcm has no DICOM mark"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_upload_is_answered_by_its_fault_and_the_server_stays_up(server, tmp_path, name):
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)

    answer = server.infer(upload=tmp_path / name)

    assert answer.status_code == 422
    assert message in detail(answer)
    assert server.get("/info/").status_code == 200
    assert server.left_over == []


@pytest.mark.parametrize(
    ("request_words", "code", "message"),
    [
        ({"image": "nobody"}, 404, "`image` must be an id of the datastore, got 'nobody'"),
        ({"image": "straight", "model": "other"}, 404, "must be ctpa_vqgan or ctpa_vqgan_codes, got 'other'"),
        ({}, 422, "`image` must be an id of the datastore, got ''"),
        ({"image": "straight", "params": '{"result_extension": ".mha"}'}, 422, "must be one of .nii"),
        ({"image": "straight", "params": "[1]"}, 422, "`params` must be a JSON object, got [1]"),
        ({"image": "straight", "params": "{"}, 422, "`params` must be a JSON object"),
        ({"image": "straight", "output": "dicom_seg"}, 422, "`output` must be one of image, json, all"),
        ({"params": '{"image": ["straight"]}'}, 422, "`image` must be an id of the datastore, got ['stra"),
        ({"image": "straight", "params": '{"model": {}}'}, 404, "`model` must be"),
        ({"image": "straight", "params": '{"device": "../x"}'}, 422, "`device` must be cpu, cuda"),
    ],
)
def test_a_request_that_cannot_be_served_is_told_why(server, request_words, code, message):
    answer = server.infer(**request_words)

    assert answer.status_code == code
    assert message in detail(answer)
    assert server.get("/info/").status_code == 200


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch_lenth": 3}, "did you mean `epoch_length`?"),
        ({"val_split": 0}, "`val_split` must be a number from 0.01 to 0.99, got 0"),
        (TINY | {"patch_size": [25, 24, 24]}, "`patch_size` must be three multiples of 4"),
        (TINY | {"hu_min": -500}, "--hu_min -1000"),
        (TINY | {"pretrained": False, "hu_min": 40, "hu_max": 40}, "`hu_min` must be below `hu_max`"),
        (TINY | {"hu_max": -1000}, "`hu_min` must be below `hu_max`, got -1000.0 and -1000"),
        (TINY | {"foreground_ratio": 0.7, "vessel_ratio": 0.7}, "must be at most 1, got 1.4; lower one"),
        (TINY | {"turn_probability": 1, "patch_size": [24, 28, 24]}, "two equal first sides"),
        (TINY | {"image_gan_weight": 1, "discriminator_iter_start": 9}, "must be below the run's 2 iter"),
        (TINY | {"video_gan_weight": 1, "patch_size": [20, 20, 20]}, "on each side for discriminators"),
    ],
)
def test_a_training_round_that_cannot_run_is_told_why(server, clone, settings, message):
    before = (clone / "models" / "model.pt").read_bytes()

    answer = server.train(**settings)

    assert answer.status_code == 422
    assert message in detail(answer)
    assert server.get("/train/").status_code == 404  # no round was started
    assert (clone / "models" / "model.pt").read_bytes() == before


def test_a_foreign_model_is_refused_and_never_served_by_random_weights(server, clone):
    model, kept = clone / "models" / "model.pt", clone / "kept.pt"
    shutil.copyfile(model, kept)
    torch.save({"generator": torch.load(kept, weights_only=True)["model"]}, clone / "foreign.pt")
    (clone / "foreign.pt").replace(model)
    try:
        answer = server.infer("straight")
        models = server.get("/info/").json()["models"]
    finally:
        kept.replace(model)

    assert answer.status_code == 409
    assert "not a checkpoint of this project" in detail(answer)
    assert models == {}
    assert server.infer("straight").status_code == 200


def test_a_training_round_installs_its_result_which_serves_the_next_request(
    server, clone, studies, run_bundle, tmp_path
):
    """One of the volumes has code for a name: see conftest.py."""
    before = (clone / "models" / "model.pt").read_bytes()

    task = server.train(synchronous=False, **TINY)
    while (status := server.get("/train/").json())["status"] in ("SUBMITTED", "RUNNING"):
        time.sleep(0.5)

    assert (task.status_code, status["status"]) == (200, "DONE"), status["details"]
    (run,) = (clone / "outputs" / "monailabel").glob("*/run.json")
    assert json.loads(run.read_text(encoding="utf-8"))["status"] == "finished"
    installed = torch.load(clone / "models" / "model.pt", weights_only=True)["model"]
    trained = torch.load(run.parent / "checkpoints" / "best_1.pt", weights_only=True)["model"]
    assert all(torch.equal(installed[name], trained[name]) for name in trained)
    assert (clone / "models" / "model_before_training.pt").read_bytes() == before
    assert (clone / "models" / "model.pt").read_bytes() != before
    assert not (clone / "trace_of_code").exists()
    run_bundle(clone, studies / "straight.nii.gz", tmp_path / "out")
    served = volume(server.infer("straight").content, tmp_path / "served.nii.gz")
    expected = nib.load(tmp_path / "out" / "straight_recon.nii.gz")
    np.testing.assert_array_equal(served.dataobj, expected.dataobj)


def test_sigterm_ends_the_server_and_leaves_no_process(server):
    server.stop()

    assert server.process.returncode is not None
    assert not server.has_processes
