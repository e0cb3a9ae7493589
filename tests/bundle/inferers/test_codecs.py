"""Codecs at a given number of bits."""

import importlib.util
import shutil

import imageio_ffmpeg
import numpy as np
import pytest
from scipy import ndimage

from bundle.inferers import codecs
from bundle.inferers.codecs import CODECS, CodecError, compress

HAS_IMAGECODECS = importlib.util.find_spec("imagecodecs") is not None
needs_imagecodecs = pytest.mark.skipif(not HAS_IMAGECODECS, reason="needs the extra `codecs`")


def scan(shape=(96, 80, 12)):
    """Structure of many scales with some noise, in HU."""
    generator = np.random.default_rng(0)
    rough = sum(ndimage.gaussian_filter(generator.normal(size=shape), s) * s**1.5 * 150 for s in (1, 3, 8))
    return (rough - 200 + generator.normal(0, 15, shape)).clip(-1000, 1000).astype(np.int16)


@pytest.mark.parametrize(
    "codec", ["hevc", *(pytest.param(name, marks=needs_imagecodecs) for name in CODECS if name != "hevc")]
)
def test_a_codec_reaches_its_bits_and_more_bits_are_closer(codec):
    voxels = scan()
    errors = []
    for bits in (0.5, 1.5):
        found = compress(codec, voxels, -1000, 1000, bits)
        assert found.bits_per_voxel == pytest.approx(bits, rel=0.03)
        assert found.recon.shape == voxels.shape and found.recon.dtype == np.int16
        errors.append(float(np.mean((found.recon - voxels.astype(float)) ** 2)))
    assert errors[1] < errors[0] < voxels.var()


def test_the_same_setting_gives_the_same_reconstruction_of_the_same_volume():
    voxels = scan()
    first = compress("hevc", voxels, -1000, 1000, 1.0)
    again = compress("hevc", voxels, -1000, 1000, 1.0, first.setting)
    assert np.array_equal(first.recon, again.recon) and again.bits_per_voxel == first.bits_per_voxel


@pytest.mark.parametrize("shape", [(65, 51, 5), (40, 36, 12), (9, 8, 3)])
def test_odd_and_small_slices_come_back_as_they_were(shape):
    assert compress("hevc", scan(shape), -1000, 1000, 2.0, 2.0).recon.shape == shape


def test_bits_that_the_headers_alone_exceed_are_refused():
    with pytest.raises(CodecError, match="hevc: its headers alone cost more bits than asked for"):
        compress("hevc", scan((16, 16, 3)), -1000, 1000, 0.1)


def test_a_missing_package_or_program_is_one_clear_line(monkeypatch, tmp_path):
    with pytest.raises(CodecError, match="`codecs` must be some of jpeg2000, jpegxl, hevc, got 'webp'"):
        compress("webp", scan(), -1000, 1000, 1.0)
    missing = lambda name: (_ for _ in ()).throw(ImportError(name))  # noqa: E731
    monkeypatch.setattr(codecs.importlib, "import_module", missing)
    with pytest.raises(CodecError, match="imagecodecs is not installed; `pip install"):
        compress("jpeg2000", scan(), -1000, 1000, 1.0)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(tmp_path / "none"))
    with pytest.raises(CodecError, match="hevc: ffmpeg cannot be run"):
        compress("hevc", scan(), -1000, 1000, 1.0)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: shutil.which("false"))
    with pytest.raises(CodecError, match="hevc: ffmpeg or its libx265 failed"):
        compress("hevc", scan(), -1000, 1000, 1.0)
