"""Videos hold every slice, in the right order and plane, and play everywhere."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from bundle.drawing.planes import MEDIASTINUM, PLANES, slices_with_body
from bundle.drawing.video import Display, VideoError, write_comparison_video

SHAPE, SPACING = (40, 30, 12), (1.0, 1.0, 2.0)
SMALL = Display(panel_px=96)


def _volume() -> np.ndarray:
    """Fat, and a bright block in the right upper front eighth of the patient."""
    volume = np.full(SHAPE, -200, np.int16)
    volume[20:, 15:, 6:] = 150
    return volume


def _decode(path: Path) -> tuple[str, np.ndarray]:
    """What ffmpeg says of a video, and its frames (N, H, W, 3)."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    result = subprocess.run(command, capture_output=True, check=True)
    told = next(line for line in result.stderr.decode().splitlines() if "Video: h264" in line)
    width, height = map(int, re.findall(r", (\d+)x(\d+)", told)[0])
    return told, np.frombuffer(result.stdout, np.uint8).reshape(-1, height, width, 3)


def _grey_halves(frames: np.ndarray, column: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean grey of the left and the right half of a panel per frame; columns are 310 pixels wide."""
    left = 30 + column * 316 + 155
    rows = slice(80, 100)
    return frames[:, rows, left - 30 : left - 5].mean((1, 2, 3)), frames[:, rows, left + 5 : left + 30].mean(
        (1, 2, 3)
    )


@pytest.mark.parametrize(("name", "shown"), [("axial", 6), ("coronal", 15), ("sagittal", 20)])
def test_slices_of_pure_air_before_and_behind_the_body_are_left_out(
    name: str, shown: int, tmp_path: Path
) -> None:
    image = np.where(_volume() > 0, 150, -1000).astype(np.int16)
    image[0, 0, 0] = 3000  # a single bright voxel is no body
    write_comparison_video(tmp_path / "case.mp4", image, {"R": image}, SPACING, PLANES[name], 5, SMALL)
    assert len(_decode(tmp_path / "case.mp4")[1]) == shown


def test_a_volume_of_air_alone_is_shown_whole() -> None:
    assert slices_with_body(np.full(SHAPE, -1000, np.int16), PLANES["axial"]) == range(SHAPE[2])


@pytest.mark.parametrize("name", PLANES)
def test_a_video_holds_every_slice_of_its_axis_in_a_format_that_plays_everywhere(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / "case.mp4"
    write_comparison_video(path, _volume(), {"Reconstruction": _volume()}, SPACING, PLANES[name], 5, SMALL)
    told, frames = _decode(path)
    assert len(frames) == SHAPE[PLANES[name].axis]
    assert "yuv420p" in told and "bt709" in told and " 5 fps" in told
    assert frames.shape[1] % 16 == 0 and frames.shape[2] % 16 == 0
    assert [file.name for file in tmp_path.iterdir()] == ["case.mp4"]


def test_axial_frames_run_from_head_to_foot_with_the_right_side_on_the_left(tmp_path: Path) -> None:
    path = tmp_path / "case.mp4"
    write_comparison_video(
        path, _volume(), {"Reconstruction": _volume()}, SPACING, PLANES["axial"], 10, SMALL
    )
    left, right = _grey_halves(_decode(path)[1], column=0)
    assert (left[:6] > right[:6] + 80).all()
    assert (abs(left[6:] - right[6:]) < 10).all()


def test_the_difference_is_signed_and_stands_in_the_last_column(tmp_path: Path) -> None:
    path, image = tmp_path / "case.mp4", _volume()
    recon = np.where(image > 0, image - 150, image + 150).astype(np.int16)
    write_comparison_video(path, image, {"Reconstruction": recon}, SPACING, PLANES["axial"], 10, SMALL)
    _, frames = _decode(path)
    middle = 30 + 2 * 316 + 155
    right_of_patient, left_of_patient = frames[2, 80:95, middle - 25], frames[2, 80:95, middle + 25]
    assert (right_of_patient[:, 2] > right_of_patient[:, 0] + 50).all()
    assert (left_of_patient[:, 0] > left_of_patient[:, 2] + 50).all()


def test_two_reconstructions_stand_side_by_side_above_their_differences(tmp_path: Path) -> None:
    path, image = tmp_path / "case.mp4", _volume()
    recons = {"without": image, "with": (image + 100).astype(np.int16)}
    notes = ["case", "PSNR 20 / 30 dB"]
    write_comparison_video(path, image, recons, SPACING, PLANES["coronal"], 10, SMALL, notes)
    _, frames = _decode(path)
    lower = frames[0, frames.shape[1] // 2 : -60].astype(int)
    orange = (lower[..., 0] > lower[..., 2] + 60).sum(axis=0)
    first, second = orange[30 + 316 : 30 + 632], orange[30 + 632 : 30 + 948]
    assert first.sum() < 50 and second.sum() > 1000


def test_the_window_of_the_display_is_the_same_in_every_frame(tmp_path: Path) -> None:
    path, image = tmp_path / "case.mp4", np.full(SHAPE, 40, np.int16)
    image[0, 0] = np.linspace(-1000, 1000, SHAPE[2])  # a window per slice would move with this voxel
    display = SMALL._replace(window=MEDIASTINUM)
    write_comparison_video(path, image, {"Reconstruction": image}, SPACING, PLANES["axial"], 10, display)
    left, right = _grey_halves(_decode(path)[1], column=0)
    assert np.ptp(left) < 3 and left.mean() == pytest.approx(128, abs=4)


def test_an_encoder_that_writes_nothing_is_an_error_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = tmp_path / "encoder.sh"
    encoder.write_text("#!/bin/sh\ncat > /dev/null\n")
    encoder.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(encoder))
    path = tmp_path / "videos" / "case.mp4"
    with pytest.raises(VideoError, match="case.mp4: the encoder wrote 0 of 12 frames; is the disk full"):
        write_comparison_video(path, _volume(), {"R": _volume()}, SPACING, PLANES["axial"], 10, SMALL)
    assert not any(path.parent.iterdir())


@pytest.mark.parametrize(
    ("recons", "fps", "message"),
    [
        ({"a": _volume()}, 0, "`fps` must be above 0, got 0"),
        ({}, 10, "one or two reconstructions, got 0"),
        ({"a": _volume()[1:]}, 10, "must have one shape"),
    ],
)
def test_wrong_arguments_are_refused(
    recons: dict[str, np.ndarray], fps: float, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        write_comparison_video(tmp_path / "case.mp4", _volume(), recons, SPACING, PLANES["axial"], fps)
