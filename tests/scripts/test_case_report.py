"""A volume's report: true planes from any file, honest numbers in the table and in the JSON."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from bundle.drawing.video import Display
from bundle.metrics.reconstruction import Figures
from scripts.case_report import CaseFigures, figures_table, report_case, video_notes

SHAPE, SPACING = (24, 20, 12), (0.5, 0.75, 2.0)
SMALL = Display(panel_px=96)


def _voxels(seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(-900, 900, SHAPE).astype(np.int16)


def _write(path: Path, voxels: np.ndarray, codes: str = "RAS") -> Path:
    """Writes RAS voxels in a file of another orientation."""
    affine = np.diag([*SPACING, 1.0])
    to_codes = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    stored = nib.orientations.apply_orientation(voxels, to_codes)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(stored, affine @ inv_ornt_aff(to_codes, SHAPE)), path)
    return path


def test_the_json_holds_figures_of_both_checkpoints_with_their_window(tmp_path: Path) -> None:
    image = _write(tmp_path / "private" / "scan.nii.gz", _voxels(), "LPS")
    recons = {
        "base/last.pt": _write(tmp_path / "out" / "scan_recon.nii.gz", _voxels() + 40, "LPS"),
        "disc/last.pt": _write(tmp_path / "out" / "compare" / "scan_recon.nii.gz", _voxels() + 10, "LPS"),
    }
    report_case(image, recons, ["axial"], 10, SMALL)
    text = (tmp_path / "out" / "scan_figures.json").read_text(encoding="utf-8")
    record = json.loads(text)
    base, disc = record["reconstructions"]
    assert (base["checkpoint"], base["mae_hu"], base["psnr"]) == (
        "base/last.pt",
        40,
        pytest.approx(33.979, abs=1e-3),
    )
    assert (disc["checkpoint"], disc["mae_hu"], disc["file"]) == (
        "disc/last.pt",
        10,
        "compare/scan_recon.nii.gz",
    )
    assert (record["hu_window"], record["data_range_hu"]) == ([-1000, 1000], 2000)
    assert str(tmp_path) not in text and "private" not in text


def test_picture_and_videos_stand_beside_the_reconstruction(tmp_path: Path) -> None:
    image = _write(tmp_path / "scan.nii", _voxels())
    recon = _write(tmp_path / "out" / "scan_recon.nii.gz", _voxels() + 25)
    report_case(image, {"run/last.pt": recon}, ["coronal"], 10, SMALL)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "scan_coronal.mp4", "scan_figures.json", "scan_picture.png", "scan_recon.nii.gz"
    ]  # fmt: skip


def test_infinite_psnr_is_null_in_the_json_with_a_note(tmp_path: Path) -> None:
    image = _write(tmp_path / "scan.nii", _voxels())
    case = report_case(image, {"x": _write(tmp_path / "scan_recon.nii.gz", _voxels())}, [], 10, SMALL)
    (entry,) = json.loads((tmp_path / "scan_figures.json").read_text(encoding="utf-8"))["reconstructions"]
    assert entry["psnr"] is None and entry["note"] == "psnr is inf, grid is nan" and entry["mae_hu"] == 0
    assert "inf" in figures_table([case], -1000, 1000)


def test_the_table_has_a_line_per_case_and_their_mean_and_says_the_window() -> None:
    cases = [
        CaseFigures(
            "a",
            {
                "base": Figures(28.0, 0.8, 20.0, 40.0, 1.5, 10),
                "disc": Figures(29.0, 0.9, 18.0, 36.0, 1.0, 10),
            },
        ),
        CaseFigures(
            "b",
            {"base": Figures(30.0, 0.6, 10.0, 20.0, 2.5, 10), "disc": Figures(33.0, 0.7, 8.0, 10.0, 1.0, 10)},
        ),
    ]
    window, checkpoints, head, *lines = figures_table(cases, -1000, 600).splitlines()
    assert (
        "HU window -1000 to 600, data range 1600 HU" in window
        and "base, disc (first / second)" in checkpoints
    )
    assert head.split()[0] == "case" and [line.split()[0] for line in lines] == ["a", "b", "mean"]
    assert lines[2].split(maxsplit=1)[1].split("  ")[0] == "29.00 / 31.00"
    assert "0.7000 / 0.8000" in lines[2] and "15.0 / 13.0" in lines[2] and "30.0 / 23.0" in lines[2]
    assert lines[2].endswith("2.0 / 1.0") and head.endswith("grid")


def test_a_single_case_needs_no_mean() -> None:
    table = figures_table([CaseFigures("a", {"x": Figures(28.0, 0.8, 20.0, 40.0, 1.5, 10)})], -1000, 1000)
    assert "mean" not in table.splitlines()[-1] and "28.00" in table.splitlines()[-1]


def test_a_video_says_whose_figures_stand_first_and_puts_units_behind_numbers() -> None:
    base, disc = Figures(28.0, 0.8, 20.0, 40.0, 1.5, 10), Figures(29.0, 0.9, 18.0, 36.0, 1.0, 10)
    assert video_notes("a", {"base": base, "disc": disc}) == [
        *("a", "Whole volume, 1 / 2:", "PSNR 28.00 / 29.00 dB", "SSIM 0.8000 / 0.9000"),
        *("MAE 20.0 / 18.0 HU", "RMSE 40.0 / 36.0 HU", "grid 1.5 / 1.0"),
    ]
    assert video_notes("a", {"base": base})[:2] == ["a", "PSNR 28.00 dB"]
