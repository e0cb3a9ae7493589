"""What a user does wrong: one line that names the file or the setting, an exit code, and nothing written."""

import gzip
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bundle.handlers.checkpoint_file import network_settings, write_checkpoint

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
HU = np.random.default_rng(0).integers(-1000, 1000, (28, 28, 24)).astype(np.int16)


def expect_refusal(done, *parts: str, output_dir: Path) -> None:
    """One line at the end, no traceback, and no output folder."""
    assert done.code != 0, done.output[-2000:]
    assert done.last_line.startswith("error: "), done.output[-2000:]
    assert [part for part in parts if part not in message_of(done)] == [], done.output[-2000:]
    assert "Traceback" not in done.output
    assert not output_dir.exists()


def message_of(done) -> str:
    """From `error:` to the end; a list of unusable files takes a line for each."""
    return done.output[done.output.rindex("error: ") :]


def save(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(voxels, None)
    image.header.set_data_dtype(voxels.dtype)
    image.set_sform(affine, code="scanner") if np.isfinite(affine).all() else _write_affine(image, affine)
    nib.save(image, path)
    return path


def _write_affine(image: nib.Nifti1Image, affine: np.ndarray) -> None:
    image.header["sform_code"] = 1
    for row, name in zip(affine, ("srow_x", "srow_y", "srow_z"), strict=False):
        image.header[name] = row


def not_nifti(path):
    path.write_bytes(b"GIF89a, renamed by somebody")


def truncated(path):
    save(path, HU)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def flat(path):
    save(path, HU[..., 0])


def colour(path):
    save(path, np.zeros(HU.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")]))


def several(path):
    save(path, np.stack([HU, HU], axis=-1))


def nan_affine(path):
    save(path, HU, np.diag([np.nan, 1.0, 1.0, 1.0]))


def infinite_affine(path):
    save(path, HU, np.diag([1.0, np.inf, 1.0, 1.0]))


FILES = {
    not_nifti: "is not a readable NIfTI file",
    truncated: "truncated",
    flat: "must hold a 3D volume, got the 2D shape (28, 28",
    colour: "must hold one number per voxel, got RGB colours",
    several: "must hold one volume, got 2 (shape (28, 28, 24, 2))",
    nan_affine: "its affine holds NaN or infinite numbers",
    infinite_affine: "its affine holds NaN or infinite numbers",
}


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture(scope="module")
def bad_files(dataset, tmp_path_factory):
    """One good volume and every unusable one."""
    folder = tmp_path_factory.mktemp("bad")
    shutil.copytree(dataset / "p0", folder / "good")
    for make in FILES:
        (folder / make.__name__).mkdir()
        make(folder / make.__name__ / "ct.nii.gz")
    return folder


@pytest.mark.parametrize("workflow", ["base", "inference"])
def test_every_unusable_file_is_named_at_once_with_what_is_wrong(
    python, bad_files, checkpoint, out, workflow
):
    model = {"ckpt_path": checkpoint} if workflow == "inference" else {}

    done = python.run(workflow, dataset_dir=bad_files, output_dir=out, **model)

    reasons = [f"{bad_files / make.__name__ / 'ct.nii.gz'}: {reason}" for make, reason in FILES.items()]
    reasons[1] = f"{bad_files / 'truncated' / 'ct.nii.gz'}: "
    expect_refusal_of_files(done, reasons, out)
    assert "7 of 8 volumes cannot be used" in done.output
    assert str(bad_files / "good") not in message_of(done)


def expect_refusal_of_files(done, reasons: list[str], output_dir: Path) -> None:
    assert done.code != 0
    assert [reason for reason in reasons if reason not in message_of(done)] == [], done.output[-3000:]
    assert "Traceback" not in done.output
    assert not output_dir.exists()


@pytest.mark.parametrize("workflow", ["base", "inference"])
@pytest.mark.parametrize("voxel", [np.nan, np.inf])
def test_voxels_that_are_no_numbers_are_refused_with_their_file(
    python, checkpoint, tmp_path, out, workflow, voxel
):
    voxels = HU.astype(np.float32)
    voxels[3, 4, 5] = voxel
    path = save(tmp_path / "data" / "p1" / "ct.nii.gz", voxels)
    model = {"ckpt_path": checkpoint} if workflow == "inference" else {}

    done = python.run(workflow, dataset_dir=tmp_path / "data", output_dir=out, **model)

    assert done.code != 0
    assert done.last_line.startswith(f"error: {path}: holds 1 NaN or infinite voxels; replace them")
    assert "Traceback" not in done.output
    assert "iteration 1" not in done.output
    assert not list(tmp_path.rglob("*.pt"))
    assert not list(out.rglob("*.nii*"))


def test_damage_that_only_reading_finds_is_refused_with_the_file(python, checkpoint, tmp_path, out):
    path = save(tmp_path / "ct.nii.gz", HU)
    packed = bytearray(path.read_bytes())
    packed[len(packed) // 2 : len(packed) // 2 + 64] = bytes(64)
    path.write_bytes(packed)
    assert gzip.open(path).read(348)  # the header can still be read

    done = python.run("inference", dataset_dir=path, output_dir=out, ckpt_path=checkpoint)

    assert done.code != 0
    assert done.last_line.startswith(f"error: {path}: is truncated or damaged")
    assert not list(out.rglob("*.nii*"))


@pytest.mark.parametrize("workflow", ["base", "inference"])
def test_a_missing_or_empty_data_folder_is_named(python, checkpoint, tmp_path, out, workflow):
    model = {"ckpt_path": checkpoint} if workflow == "inference" else {}
    (tmp_path / "empty").mkdir()
    for name, reason in {"none": "no such file or folder", "empty": "holds no .nii or .nii.gz"}.items():
        done = python.run(workflow, dataset_dir=tmp_path / name, output_dir=out, **model)
        expect_refusal(done, f"error: {tmp_path / name}: {reason}", output_dir=out)


def test_axes_of_one_are_dropped_and_a_volume_smaller_than_a_patch_is_padded_with_a_warning(
    python, tmp_path, out
):
    save(tmp_path / "leading.nii.gz", HU[None])
    small = save(tmp_path / "trailing.nii.gz", HU[:, :, :20, None])
    lists = {"training": ["leading.nii.gz", "trailing.nii.gz"], "validation": ["leading.nii.gz"]}
    (tmp_path / "datalist.json").write_text(json.dumps(lists), encoding="utf-8")

    done = python.run("base", dataset_dir=tmp_path / "datalist.json", output_dir=out)

    done.expect_success()
    log = (out / "training.log").read_text(encoding="utf-8")
    assert f"{small}: its (28, 28, 20) voxels are fewer than a patch of (24, 24, 24); it is padded" in log


UNKNOWN = "got `learning_rat` (did you mean `learning_rate`"


def test_an_unknown_setting_is_refused_by_monai_run_with_the_nearest_name(python, dataset, out):
    done = python.run_cold("base", dataset_dir=dataset, output_dir=out, learning_rat=0.1)

    expect_refusal(done, UNKNOWN, output_dir=out)


def test_an_unknown_setting_is_refused_by_the_front_door(python, dataset, out):
    words = ["--dataset_dir", str(dataset), "--output_dir", str(out), "--learning_rat", "0.1"]

    done = python("scripts.run", "--config_file", "configs/train.yaml", *words)

    expect_refusal(done, UNKNOWN, output_dir=out)


def test_inference_without_a_checkpoint_never_runs(python, dataset, tmp_path, out):
    done = python.run_cold("inference", dataset_dir=dataset, output_dir=out, ckpt_path=tmp_path / "no.pt")

    expect_refusal(done, f"error: {tmp_path / 'no.pt'}: no such checkpoint", output_dir=out)


@pytest.mark.parametrize(
    ("here", "advice"),
    [
        ({"preset": "default"}, "--preset lite"),
        ({"quantizer": "fsq"}, "--quantizer ema"),
        ({"num_embeddings": 128}, "--num_embeddings 64"),
        ({"hu_max": 600.0}, "--hu_max 1000.0"),
    ],
)
def test_a_checkpoint_of_another_network_or_window_is_refused_with_the_override_that_fits(
    python, dataset, checkpoint, out, here, advice
):
    done = python.run("inference", dataset_dir=dataset, output_dir=out, ckpt_path=checkpoint, **here)

    (name,) = here
    expect_refusal(
        done,
        f"error: {checkpoint}: was trained with `{name}`",
        f"use it with {advice}",
        output_dir=out,
    )


@pytest.mark.parametrize("setting", ["ckpt_path", "init_from", "resume_from_checkpoint"])
def test_a_lightning_checkpoint_is_called_one(python, dataset, tmp_path, out, setting):
    path = tmp_path / "epoch=3.ckpt"
    torch.save({"state_dict": {"encoder.weight": torch.ones(1)}, "pytorch-lightning_version": "2.1"}, path)
    workflow = "inference" if setting == "ckpt_path" else "base"

    done = python.run(workflow, dataset_dir=dataset, output_dir=out, **{setting: path})

    expect_refusal(
        done, f"error: {path}: ", "Lightning", "another network", "cannot be loaded", output_dir=out
    )


@pytest.fixture(scope="module")
def base_checkpoint(network, tmp_path_factory):
    """As a base run leaves it, as far as a resuming run looks at it before it starts."""
    path = tmp_path_factory.mktemp("base") / "checkpoints" / "last.pt"
    content = {"model": network.state_dict(), "network": network_settings("lite", "ema", 64, -1000, 1000)}
    trainer = {"iteration": 2, "epoch_length": 2, "max_epochs": 1}
    write_checkpoint(
        path, {**content, "discriminators": {}, "optimizers": {"generator": {}}, "trainer": trainer}
    )
    return path


def test_a_base_checkpoint_cannot_be_resumed_adversarially_but_started_from(
    python, dataset, base_checkpoint, out
):
    settings = {"dataset_dir": dataset, "output_dir": out, "discriminator_iter_start": 1}

    done = python.run("adversarial", **settings, resume_from_checkpoint=base_checkpoint)

    expect_refusal(
        done,
        f"error: {base_checkpoint}: its discriminators are not those of this run",
        f"use --init_from {base_checkpoint} instead of --resume_from_checkpoint",
        output_dir=out,
    )


PERCEPTUAL = {"perceptual_weight": 0.1, "discriminator_iter_start": 1}


def test_a_missing_backbone_file_is_named_with_both_ways_out(python, dataset, tmp_path, out):
    missing = tmp_path / "vgg16-397923af.pth"
    settings = {"dataset_dir": dataset, "output_dir": out, "perceptual_weights_path": missing}

    done = python.run("adversarial", **settings, **PERCEPTUAL)

    ways_out = ("--perceptual_weights_path FILE", "--perceptual_weight 0")
    expect_refusal(done, f"error: {missing}: no such file", *ways_out, output_dir=out)


def test_without_internet_and_cache_the_missing_backbone_is_an_error_before_training(
    python, dataset, tmp_path, out
):
    words = ["--config_file", "['configs/train.yaml','configs/train_with_discriminator.yaml']"]
    words += ["--dataset_dir", str(dataset), "--output_dir", str(out), "--preset", "lite"]
    nowhere = {name: "http://127.0.0.1:9" for name in ("https_proxy", "HTTPS_PROXY")}

    done = python("monai.bundle", "run", *words, **nowhere, TORCH_HOME=str(tmp_path / "torch"), no_proxy="")

    ways_out = ("--perceptual_weights_path FILE", "--perceptual_weight 0")
    expect_refusal(done, "vgg16-397923af.pth: LPIPS backbone weights are missing", *ways_out, output_dir=out)
    assert not [path for path in (tmp_path / "torch").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"discriminator_iter_start": 2}, "`discriminator_iter_start` + `discriminator_pretrain_iters` must"),
        ({"patch_size": [24, 24, 30]}, "`patch_size` must hold three multiples of 4, each at least 24"),
        ({"micro_batch_size": 0}, "`micro_batch_size` must be a whole number from 1, got 0"),
        ({"max_patients": 0}, "`max_patients` must be at least 1, got 0"),
    ],
)
def test_a_setting_that_cannot_work_is_named_before_anything_is_written(
    python, dataset, out, settings, message
):
    valid = {"dataset_dir": dataset, "output_dir": out, "discriminator_iter_start": 1}

    done = python.run("adversarial", **valid | settings)

    expect_refusal(done, message, output_dir=out)
