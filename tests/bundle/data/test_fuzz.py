"""Damaged bytes are read right or refused by name; `CTPA_FUZZ_EXAMPLES=5000` tries more (CONTRIBUTING.md)."""

import gzip
import shutil
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.data.dicom.series import find_series
from bundle.data.volumes.formats import VolumeError, read_header
from bundle.data.volumes.reading import read_volume
from tests.bundle.data.fuzzing import FUZZ

HU = np.random.default_rng(0).integers(-1024, 2000, (3, 32, 24)).astype(np.int16)
MAX_BYTES = 32 << 20
VALUES = st.one_of(st.integers(0, 255), st.sampled_from([0, 1, 0x7F, 0x80, 0xFE, 0xFF]))
EDITS = st.lists(
    st.tuples(st.sampled_from("sssidt"), st.floats(0, 1, exclude_max=True), VALUES), min_size=1, max_size=6
)


def mutated(content: bytes, edits, first: int, last: int) -> bytes:
    """Sets, inserts, drops single bytes between `first` and `last`, or cuts the file there."""
    raw = bytearray(content)
    for kind, where, value in edits:
        place = min(first + int(where * (last - first)), len(raw) - 1)
        if kind == "s":
            raw[place] = value
        elif kind == "i":
            raw.insert(place, value)
        elif kind == "d" and len(raw) > 1:
            del raw[place]
        elif kind == "t" and value > 0xF0:
            del raw[max(1, place) :]
    return bytes(raw)


@pytest.fixture(scope="module", params=[None, "JPEG", pytest.param("JPEG2000", marks=pytest.mark.slow)])
def series(request, write_dicom, tmp_path_factory):
    """Three slices; the middle one's bytes and where its pixels begin."""
    folder = write_dicom(tmp_path_factory.mktemp("series") / "ct", HU, compressor=request.param)
    for path in sorted(folder.iterdir()):
        path.rename(f"{path}.dcm")
    (found,) = find_series(folder)
    content = Path(found.files[1]).read_bytes()
    return folder, Path(found.files[1]), content, content.rindex(b"\xe0\x7f\x10\x00")


@FUZZ
@given(edits=EDITS, in_header=st.integers(0, 3))
def test_a_damaged_dicom_file_is_read_right_or_refused(series, edits, in_header):
    folder, path, content, pixels = series
    path.write_bytes(
        mutated(content, edits, 120, pixels + 12)
        if in_header
        else mutated(content, edits, pixels, len(content))
    )

    tracemalloc.start()
    try:
        header, volume = read_header(folder), read_volume(folder)
    except VolumeError as error:
        assert str(error).startswith(str(folder)) and error.code != "unusable"
    else:
        # a sound header that says it is of another series, and no CT, is another series
        n_slices = 3 - any(found.is_skipped for found in find_series(folder))
        assert header.shape == volume.voxels.shape == (24, 32, n_slices)
        assert np.isfinite(volume.affine).all() and abs(np.linalg.det(volume.affine)) > 0
        np.testing.assert_array_equal(volume.voxels[..., 0], HU[0].T)
        np.testing.assert_array_equal(volume.voxels[..., -1], HU[2].T)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MAX_BYTES


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@FUZZ
@given(edits=EDITS)
def test_a_damaged_nifti_header_is_read_right_or_refused(tmp_path_factory, edits, suffix):
    folder = tmp_path_factory.mktemp("fuzz")
    path = folder / f"scan{suffix}"
    content = mutated(nib.Nifti1Image(HU, np.diag([0.7, 0.8, 1.5, 1])).to_bytes(), edits, 0, 352)
    path.write_bytes(gzip.compress(content, 1) if suffix.endswith("gz") else content)

    tracemalloc.start()
    try:
        header, volume = read_header(path), read_volume(path)
    except VolumeError as error:
        assert str(error).startswith(str(path))
    else:
        oracle = nib.load(path)
        assert header.shape == volume.voxels.shape
        with np.errstate(over="ignore"):
            expected = oracle.get_fdata().reshape(header.shape).astype(np.float32)
        np.testing.assert_array_equal(volume.voxels.astype(np.float32), expected)
        np.testing.assert_array_equal(volume.affine, oracle.affine)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        shutil.rmtree(folder)
    assert peak < MAX_BYTES
