"""Data that can be read, but are hardly what they should be, are told by name."""

import gzip
import logging
import re

import numpy as np
import pytest

from bundle.data.cases.split import find_cases
from bundle.data.patches.dataset import PatchDataset
from bundle.data.store.store import PatchStore
from bundle.data.volumes.formats import VolumeError, read_header
from bundle.data.volumes.reading import read_volume
from bundle.data.volumes.values import look_at_values
from scripts.inspect import main as inspect
from scripts.prepare import prepare

NOISE = np.random.default_rng(0).normal(size=(16, 16, 16))
SCAN = np.rint(NOISE * 400 - 200).astype(np.int16)
MASKS = {
    "zeros": np.zeros((16, 16, 16), np.int16),
    "labels": np.where(SCAN > 0, 117, 0).astype(np.uint8),
    "labels as floats": np.where(SCAN > 0, 2.0, 1.0),
    "8-bit picture": np.arange(4096).reshape(16, 16, 16) % 256,
}
DOUBTFUL = {
    "shifted": (
        np.clip(SCAN + 1024, -40, 3000),
        r"its lowest value is -40, as if 1024 had been added to HU; convert",
    ),
    "from 0 to 1": (
        np.clip(NOISE / 8 + 0.5, 0, 1),
        r"its values run from 0\.\d+ to 0\.9\d+, as if scaled",
    ),
    "from -1 to 1": (np.clip(NOISE, -1, 1), r"its values run from -1 to 1, as if scaled to"),
    "no air": (
        np.clip(SCAN, -100, 100),
        "its lowest value is -100, but a CT of the chest holds air near",
    ),
}


@pytest.fixture
def save(save_nifti):
    """Saves an array of any type as a file in a folder of its own below DIR."""

    def save(voxels, name):
        dtype = np.float32 if voxels.dtype.kind == "f" else np.int16
        return save_nifti(voxels.astype(dtype), name=f"DIR/{name}/ct.nii.gz")

    return save


@pytest.mark.parametrize("kind", MASKS)
def test_a_mask_is_refused_by_name_wherever_data_are_first_seen(save, tmp_path, capsys, kind):
    save(SCAN, "scan")
    path = save(MASKS[kind], "mask")
    told = f"{path}: is a mask or an 8-bit picture, not a CT in HU: it holds"
    cases = find_cases(tmp_path / "DIR")

    with pytest.raises(VolumeError, match="1 of 2 volumes are not CT:") as raised:
        PatchDataset(cases, 8, tmp_path / "cache").prepare()
    assert told in str(raised.value) and not (tmp_path / "cache").exists()
    assert [line[: len(told)] for line in PatchStore(tmp_path / "cache").judge(cases).masks] == [told]
    lines = prepare(tmp_path / "DIR", tmp_path / "STORE", 0)
    assert [(line.path, line.status, line.code) for line in lines] == [
        ("mask/ct.nii.gz", "refused", "mask"),
        ("scan/ct.nii.gz", "prepared", ""),
    ]
    assert lines[0].message.startswith(told)
    assert inspect([str(tmp_path / "DIR")]) == 1
    assert "mask/ct.nii.gz: is a mask or an 8-bit picture" in capsys.readouterr().out


@pytest.mark.parametrize("kind", DOUBTFUL)
def test_values_that_are_hardly_hu_are_told_by_the_name_of_the_file(save, tmp_path, capsys, caplog, kind):
    voxels, told = DOUBTFUL[kind]
    save(SCAN, "scan")
    path = save(voxels, "odd")
    cases = find_cases(tmp_path / "DIR")
    line = re.compile(f"{re.escape(str(path))}: {told}")

    with caplog.at_level(logging.WARNING):
        PatchDataset(cases, 8, tmp_path / "cache").prepare()

    assert [bool(line.match(record.getMessage())) for record in caplog.records] == [True]
    for cache in ("cache", "another cache"):  # packed, and not yet
        judged = PatchStore(tmp_path / cache).judge(cases)
        assert [bool(line.match(doubt)) for doubt in judged.doubts] == [True] and not judged.masks
    lines = prepare(tmp_path / "DIR", tmp_path / "STORE", 0)
    assert [(line.status, line.code) for line in lines] == [("prepared", "doubtful"), ("prepared", "")]
    assert re.match(told, lines[0].message)
    assert inspect([str(tmp_path / "DIR")]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^odd/ct\.nii\.gz .* doubtful$", out, re.MULTILINE)
    assert (
        re.search(f"  odd/ct.nii.gz: {told}", out) and "2 of 2 volumes can be used as they are; 1 of" in out
    )


def test_looking_at_values_ends_where_they_are_plausible(tmp_path, save_nifti):
    """The rest of the file is damaged, and nobody reads so far."""
    rng = np.random.default_rng(0)
    path = save_nifti(rng.integers(-1000, 1000, (128, 128, 400)).astype(np.int16), name="ct.nii")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 100)

    with pytest.raises(VolumeError, match="truncated"):
        read_header(path)
    with path.open("ab") as file:
        file.write(bytes(100))
    packed = path.with_name("ct.nii.gz")
    packed.write_bytes(gzip.compress(path.read_bytes(), 1))
    content = bytearray(packed.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 1000] = bytes(1000)
    packed.write_bytes(content)

    assert look_at_values(packed).is_plausible
    with pytest.raises(VolumeError):
        read_volume(packed)


def test_earlier_results_in_the_data_set_are_told(save_nifti, write_dicom, tmp_path, caplog):
    scan = np.zeros((8, 12, 10), np.int16)
    for name in ("p1/ct.nii.gz", "p1/out/ct_recon.nii.gz", "p2/reconstructed.nii.gz"):
        save_nifti(scan, name=f"DIR/{name}")
    write_dicom(tmp_path / "DIR" / "p3" / "series_recon", scan)

    with caplog.at_level(logging.WARNING):
        find_cases(tmp_path / "DIR")

    assert "2 of 4 volumes are called *_recon" in caplog.text
    assert f"({tmp_path / 'DIR' / 'p1' / 'out' / 'ct_recon.nii.gz'}, ...)" in caplog.text


def test_a_series_in_several_folders_is_told(write_dicom, tmp_path, caplog):
    slices = np.zeros((8, 12, 10), np.int16)
    for name, series in (("a", "1.2.3.4"), ("b", "1.2.3.4"), ("c", "1.2.3.5")):
        write_dicom(tmp_path / "DIR" / name, slices, series=series)

    with caplog.at_level(logging.WARNING):
        cases = find_cases(tmp_path / "DIR")

    assert len(cases) == 3
    assert caplog.text.count("one series lies in 2 folders") == 1
    assert f"{tmp_path / 'DIR' / 'a'}, {tmp_path / 'DIR' / 'b'};" in caplog.text
