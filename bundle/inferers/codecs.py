"""Runs image and video codecs, to compare a network with what they make of a volume at the same bits.

JPEG 2000 and JPEG XL code axial slices (package `imagecodecs`, an extra), HEVC codes them as a video (the
ffmpeg binary that `imageio-ffmpeg` brings, which is called and never linked).
"""

from __future__ import annotations

import importlib
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import imageio_ffmpeg
import numpy as np

from bundle.run.rules import CODECS

__all__ = ["CODECS", "CodecError", "Compressed", "compress"]

BITS_TOLERANCE = 0.03
MAX_TRIES = 12
DEPTH_MAX = 4095
"""All codecs see 12 bits: the window is spread over 0 to 4095."""
FRAMES_PER_SECOND = 25
SMALLEST_FRAME, LOWEST_RATE = 64, 1000
TIMEOUT_S = 3600


class CodecError(RuntimeError):
    """A codec that is not there or fails; the message names it and says what to do."""


class Compressed(NamedTuple):
    """A volume that went through a codec.

    Attributes:
        recon: (X, Y, Z) int16 in HU.
        bits_per_voxel: of the coded bytes.
        setting: the one that reached these bits; a similar volume can be coded with it again.
    """

    recon: np.ndarray
    bits_per_voxel: float
    setting: float


def compress(
    codec: str,
    voxels: np.ndarray,
    hu_min: float,
    hu_max: float,
    bits_per_voxel: float,
    setting: float | None = None,
) -> Compressed:
    """Codes a volume and decodes it again.

    Args:
        codec: one of `CODECS`.
        voxels: (X, Y, Z) int16 in HU.
        hu_min: lower end of the window; what lies outside comes back clipped.
        hu_max: upper end.
        bits_per_voxel: to reach within 3 %.
        setting: of an earlier result, to be used as it is, because volumes with and without emboli must be
            coded in the same way. None searches for it.

    Raises:
        CodecError: if the codec is missing, fails, or does not reach the bits.
    """
    if codec not in CODECS:
        raise CodecError(f"`codecs` must be some of {', '.join(CODECS)}, got {codec!r}")
    scaled = np.rint(
        (voxels.clip(hu_min, hu_max).astype(np.float32) - hu_min) * (DEPTH_MAX / (hu_max - hu_min))
    )
    frames = np.ascontiguousarray(np.moveaxis(scaled.astype(np.uint16), 2, 0))
    code = _coder(codec)
    if setting is None:
        setting, decoded, n_bytes = _search(codec, code, frames, bits_per_voxel)
    else:
        decoded, n_bytes = code(frames, setting)
    hu = np.moveaxis(decoded, 0, 2).astype(np.float32) * ((hu_max - hu_min) / DEPTH_MAX) + hu_min
    return Compressed(np.rint(hu).astype(np.int16), 8 * n_bytes / voxels.size, setting)


Coder = Callable[[np.ndarray, float], tuple[np.ndarray, int]]


def _coder(codec: str) -> Coder:
    """Returns a function that codes frames (Z, X, Y) uint16, with more bits for a higher setting.

    It returns the decoded frames, and the number of bytes.
    """
    if codec == "hevc":
        return _code_hevc
    images = _imagecodecs()
    if codec == "jpeg2000":
        return lambda frames, decibel: _code_slices(
            frames,
            lambda one: images.jpeg2k_encode(one, level=decibel, codecformat="j2k"),
            images.jpeg2k_decode,
        )
    return lambda frames, quality: _code_slices(
        frames, lambda one: images.jpegxl_encode(one, distance=100 / quality), images.jpegxl_decode
    )


def _code_slices(
    frames: np.ndarray, encode: Callable[[np.ndarray], bytes], decode: Callable[[bytes], np.ndarray]
) -> tuple[np.ndarray, int]:
    coded = [encode(frame) for frame in frames]
    return np.stack([decode(one) for one in coded]).clip(0, DEPTH_MAX), sum(map(len, coded))


def _search(codec: str, code: Coder, frames: np.ndarray, target: float) -> tuple[float, np.ndarray, int]:
    """Finds the setting whose bits are within 3 % of the target: bisection, for a bit rate by its ratio."""
    low, high = {"jpeg2000": (20.0, 90.0), "jpegxl": (4.0, 1000.0), "hevc": (0.0, np.inf)}[codec]
    setting = target if codec == "hevc" else (low + high) / 2
    for _ in range(MAX_TRIES):
        decoded, n_bytes = code(frames, setting)
        ratio = 8 * n_bytes / frames.size / target
        if abs(ratio - 1) <= BITS_TOLERANCE:
            return setting, decoded, n_bytes
        if codec == "hevc":
            setting /= ratio
            continue
        low, high = (low, setting) if ratio > 1 else (setting, high)
        setting = (low + high) / 2 if codec == "jpeg2000" else float(np.sqrt(low * high))
    raise CodecError(
        f"{codec}: does not reach {target:g} bits per voxel within 3 % (the last try had {ratio:.2f} times "
        "as many); leave it out, or give another --codec_bits_per_voxel"
    )


def _imagecodecs() -> Any:
    try:
        return importlib.import_module("imagecodecs")
    except ImportError as error:
        raise CodecError(
            "imagecodecs is not installed; `pip install .[codecs]`, or leave its codecs out"
        ) from error


def _code_hevc(frames: np.ndarray, bits_per_voxel: float) -> tuple[np.ndarray, int]:
    """Codes by two passes of x265, 12 bits, one frame per axial slice."""
    n_frames, height, width = frames.shape
    # x265 wants even sides, and crashes on frames smaller than one of its blocks
    missing = [(0, max(side + side % 2, SMALLEST_FRAME) - side) for side in (height, width)]
    padded = np.pad(frames, [(0, 0), *missing], mode="edge")
    size = f"{padded.shape[2]}x{padded.shape[1]}"
    raw = ["-f", "rawvideo", "-pix_fmt", "gray12le", "-s", size, "-r", str(FRAMES_PER_SECOND)]
    rate = round(bits_per_voxel * height * width * FRAMES_PER_SECOND)
    if rate < LOWEST_RATE:
        raise CodecError(
            "hevc: its headers alone cost more bits than asked for; leave it out, or ask for more"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        padded.astype("<u2").tofile(folder / "in.raw")
        for number in (1, 2):
            params = f"pass={number}:log-level=error"
            target = ["-f", "null", "-"] if number == 1 else ["out.hevc"]
            options = ["-c:v", "libx265", "-preset", "medium", "-b:v", str(rate), "-x265-params", params]
            _ffmpeg(folder, [*raw, "-i", "in.raw", *options, *target])
        n_bytes = (folder / "out.hevc").stat().st_size
        _ffmpeg(folder, ["-i", "out.hevc", "-f", "rawvideo", "-pix_fmt", "gray12le", "back.raw"])
        decoded = np.fromfile(folder / "back.raw", "<u2").reshape(-1, *padded.shape[1:])
    if len(decoded) != n_frames:
        raise CodecError(f"hevc: gave {len(decoded)} of {n_frames} slices back; leave it out")
    return decoded[:, :height, :width], n_bytes


def _ffmpeg(folder: Path, arguments: list[str]) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-hide_banner", "-loglevel", "error", *arguments]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise CodecError(f"hevc: ffmpeg cannot be run ({error}); leave it out") from error
    if done.returncode != 0:
        said = " ".join(done.stderr.decode(errors="replace").split())[-200:]
        raise CodecError(f"hevc: ffmpeg or its libx265 failed ({said}); leave it out")
