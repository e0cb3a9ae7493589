"""From checkpoint and NIfTI to NIfTI, figures, picture and video, through the real inference config."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity

from bundle.checkpoints.file import CheckpointError, network_settings, write_checkpoint
from bundle.data.cases.split import DatasetError
from bundle.networks.vqgan import build_vqgan
from scripts.reconstruct import BUNDLE_ROOT, checkpoint_labels, main, output_name

SHAPE = (27, 22, 18)


def _checkpoint(path: Path, seed: int, num_embeddings: int = 64, hu_max: float = 1000) -> Path:
    torch.manual_seed(seed)
    network = build_vqgan("lite", "ema", num_embeddings)
    with torch.no_grad():
        network.quantizer.initialize(network.encode_latent(torch.rand(1, 1, 16, 16, 32) * 2 - 1))
    settings = network_settings("lite", "ema", num_embeddings, -1000, hu_max)
    write_checkpoint(path, {"model": network.state_dict(), "network": settings})
    return path


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two untrained networks with codebooks of different size."""
    folder = tmp_path_factory.mktemp("runs")
    first = _checkpoint(folder / "base" / "checkpoints" / "last.pt", 1)
    return first, _checkpoint(folder / "disc" / "checkpoints" / "last.pt", 2, num_embeddings=32)


def _scan(path: Path, seed: int = 0) -> Path:
    voxels = np.random.default_rng(seed).integers(-1200, 1200, SHAPE).astype(np.int16)
    affine = np.array([[-0.7, 0.1, 0, 12.3], [0.1, -0.7, 0, 45.6], [0, 0, 2.5, -7.8], [0, 0, 0, 1]])
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def _arguments(checkpoint: Path, source: Path, output: Path, *more: str) -> list[str]:
    paths = ["--ckpt_path", str(checkpoint), "--input", str(source), "--output_dir", str(output)]
    return [*paths, "--device", "cpu", "--tile_size", "16", *more]


def test_figures_are_those_of_the_two_nifti_files(checkpoints, tmp_path: Path, capsys, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    scan, code = _scan(tmp_path / "scan.nii.gz"), "$(1 / 0)#@%\\"
    _scan(Path(code) / "scan.nii.gz")
    main(
        _arguments(
            checkpoints[0], Path(code) / "scan.nii.gz", Path("@out#1"), "--axes", "sagittal", "--fps", "4"
        )
    )
    (tmp_path / "@out#1").rename(tmp_path / "out")
    image, recon = nib.load(scan), nib.load(tmp_path / "out" / "scan_recon.nii.gz")
    assert np.array_equal(image.affine, recon.affine) and recon.get_data_dtype() == np.int16
    real, fake = (np.asarray(file.dataobj).clip(-1000, 1000).astype(float) + 1000 for file in (image, recon))
    ssim = [structural_similarity(real[..., z], fake[..., z], data_range=2000) for z in range(SHAPE[2])]
    (told,) = json.loads((tmp_path / "out" / "scan_figures.json").read_text(encoding="utf-8"))[
        "reconstructions"
    ]
    assert told["mae_hu"] == pytest.approx(abs(real - fake).mean())
    assert told["psnr"] == pytest.approx(10 * np.log10(2000**2 / ((real - fake) ** 2).mean()))
    assert told["ssim"] == pytest.approx(np.mean(ssim), abs=1e-6)
    assert f"{told['psnr']:.2f}" in capsys.readouterr().out
    assert (tmp_path / "out" / "scan_sagittal.mp4").stat().st_size > 1000


def test_two_checkpoints_of_different_codebooks_are_compared_over_a_folder(
    checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    for patient in ("p1", "p2"):
        _scan(tmp_path / "data" / patient / "ct.nii.gz")
    first, second = checkpoints
    cases = main(_arguments(first, tmp_path / "data", tmp_path / "out", "--compare", str(second), "--axes"))
    assert [list(case.figures) for case in cases] == [["base/last.pt", "disc/last.pt"]] * 2
    for patient in ("p1", "p2"):
        record = json.loads((tmp_path / "out" / patient / "ct_figures.json").read_text(encoding="utf-8"))
        base, disc = record["reconstructions"]
        assert base["mae_hu"] != disc["mae_hu"]
        assert (tmp_path / "out" / "compare" / patient / "ct_recon.nii.gz").is_file()
        with Image.open(tmp_path / "out" / patient / "ct_comparison.png") as still:
            assert still.width > 1600  # original, two reconstructions, two differences
    assert not list((tmp_path / "out").rglob("*.mp4"))


def test_checkpoints_of_different_windows_are_not_compared(
    checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    other = _checkpoint(tmp_path / "other.pt", 3, hu_max=600)
    arguments = _arguments(
        checkpoints[0], _scan(tmp_path / "scan.nii"), tmp_path / "out", "--compare", str(other)
    )
    with pytest.raises(CheckpointError, match=r"other\.pt: was trained with another HU window"):
        main(arguments)
    assert not (tmp_path / "out").exists()


def test_missing_files_are_named_before_anything_is_written(
    checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    scan, out = _scan(tmp_path / "scan.nii"), tmp_path / "out"
    with pytest.raises(CheckpointError, match="absent.pt: no such checkpoint"):
        main(_arguments(checkpoints[0], scan, out, "--compare", str(tmp_path / "absent.pt")))
    with pytest.raises(DatasetError, match="absent.nii: no such file or folder"):
        main(_arguments(checkpoints[0], tmp_path / "absent.nii", out))
    assert not out.exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--fps", "0"], "--fps: must be a number above 0, got '0'"),
        (["--axes", "oblique"], "invalid choice: 'oblique'"),
        (["--learning_rate", "1"], "unrecognized arguments: --learning_rate"),
        (["--hu_window", "40", "0"], "WIDTH of `hu_window` must be above 0, got 0"),
        (["--output_dir", "scans/out"], "`output_dir` must lie outside the input folder"),
    ],
)
def test_wrong_arguments_are_refused(more: list[str], message: str, capsys) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SystemExit):
        main([*_arguments(Path("last.pt"), Path("scans"), Path("out")), *more])
    assert message in capsys.readouterr().err


def test_checkpoints_are_named_by_their_run_and_never_alike() -> None:
    paths = [Path("outputs/base/checkpoints/last.pt"), Path("models/model.pt"), Path("copy/base/last.pt")]
    assert checkpoint_labels(paths) == ["base/last.pt", "models/model.pt", "base/last.pt (second)"]


def test_outputs_keep_the_folders_of_the_data_set() -> None:
    assert output_name(Path("data/p1/CT.NII.GZ"), Path("data")) == Path("p1/CT_recon.nii.gz")
    assert output_name(Path("data/ct.1.nii"), Path("data")) == Path("ct.1_recon.nii.gz")


def test_the_script_starts_as_a_file_from_any_folder(tmp_path: Path) -> None:
    script = BUNDLE_ROOT / "scripts" / "reconstruct.py"
    command = [sys.executable, str(script), "--ckpt_path", "absent.pt", "--input", "x", "--output_dir", "out"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("error: absent.pt: no such checkpoint")
