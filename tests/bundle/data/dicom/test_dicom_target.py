"""Where a DICOM series may be written: never into its source, never over what somebody else put there."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from bundle.data.dicom.derived import DerivedHeaders, SeriesWriter, check_source, check_target
from bundle.data.dicom.header import read_raw_elements
from bundle.data.volumes.formats import VolumeError
from bundle.data.volumes.reading import read_volume
from bundle.run.atomic import UnwritableError, complete_or_absent_folder

HU = np.random.default_rng(0).integers(-1000, 1001, (3, 6, 8)).astype(np.int16)  # Z, rows, columns


@pytest.fixture
def source(write_dicom, tmp_path):
    return write_dicom(tmp_path / "p1" / "ct", HU)


def derive(source, target, voxels=None):
    volume = read_volume(source)
    writer = SeriesWriter("made by a test")
    writer.set_data_array((volume.voxels if voxels is None else voxels)[None])
    writer.set_metadata({"filename_or_obj": str(source), "affine": volume.affine})
    writer.write(target)


def listing(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_older_result_is_replaced_and_nothing_is_left_beside_it(source, tmp_path):
    derive(source, tmp_path / "ct_recon", np.zeros((8, 6, 3), np.int16))

    derive(source, tmp_path / "ct_recon")

    np.testing.assert_array_equal(read_volume(tmp_path / "ct_recon").voxels, HU.transpose(2, 1, 0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ct_recon", "p1"]


def a_note_beside_slices(folder, source):
    derive(source, folder)
    (folder / "note.txt").write_text("mine")


def a_scan(folder, source):
    folder.mkdir()
    for number, path in enumerate(sorted(source.iterdir())):
        (folder / f"{number:04d}.dcm").write_bytes(path.read_bytes())


def a_link_to_a_result(folder, source):
    derive(source, folder.with_name("elsewhere"))
    folder.symlink_to(folder.with_name("elsewhere"))


def a_file(folder, source):
    folder.write_text("mine")


@pytest.mark.parametrize("put", [a_note_beside_slices, a_scan, a_link_to_a_result, a_file])
def test_what_is_no_older_result_is_never_touched(source, tmp_path, put):
    target = tmp_path / "ct_recon"
    put(target, source)
    before = listing(tmp_path)

    with pytest.raises(VolumeError, match=r"ct_recon: holds something other than an earlier result"):
        derive(source, target)

    assert listing(tmp_path) == before


@pytest.mark.parametrize("place", ["ct", "ct/ct_recon", "link/ct_recon"])
def test_the_folder_of_the_source_is_never_written_to(source, tmp_path, place):
    (source.parent / "link").symlink_to(source)
    before = listing(tmp_path)

    with pytest.raises(VolumeError, match="lies in the folder of the input"):
        derive(source, source.parent / place)

    assert listing(tmp_path) == before


def test_a_name_that_is_no_utf_8_is_written_like_any_other(source, tmp_path):
    source = source.rename(source.with_name(os.fsdecode(b"M\xfcller")))
    target = tmp_path / f"{source.name}_recon"

    derive(source, target)

    np.testing.assert_array_equal(read_volume(target).voxels, HU.transpose(2, 1, 0))


def test_one_file_of_a_series_stands_for_its_folder(source):
    with pytest.raises(VolumeError, match="lies in the folder of the input"):
        check_target(source / "x_recon", next(source.iterdir()))


def test_a_result_is_no_target_for_what_is_derived_from_it(source, tmp_path):
    derive(source, tmp_path / "ct_recon")

    with pytest.raises(VolumeError, match="lies in the folder of the input"):
        derive(tmp_path / "ct_recon", tmp_path / "ct_recon")


@pytest.mark.parametrize("name", ["ct.nii.gz", "missing"])
def test_of_what_is_no_dicom_no_series_is_derived(tmp_path, name):
    (tmp_path / "ct.nii.gz").write_bytes(b"")

    with pytest.raises(VolumeError, match=rf"{name}: is not DICOM.*--output_format nifti"):
        check_source(tmp_path / name)


def test_voxels_on_another_grid_are_refused(source):
    with pytest.raises(VolumeError, match=r"\(8, 6, 2\) voxels do not lie on its grid of \(8, 6, 3\)"):
        derive(source, source.parent / "ct_recon", np.zeros((8, 6, 2), np.int16))


def test_a_series_that_fails_half_way_leaves_what_was_there(source, tmp_path, monkeypatch):
    derive(source, tmp_path / "ct_recon")
    before = listing(tmp_path)
    writes = iter([DerivedHeaders.data_set] * 2)
    monkeypatch.setattr(DerivedHeaders, "data_set", lambda *slice_: next(writes)(*slice_))

    with pytest.raises(StopIteration):
        derive(source, tmp_path / "ct_recon")

    assert listing(tmp_path) == before


def test_a_disk_that_fills_up_on_the_way_is_an_error_and_leaves_nothing(source, tmp_path, monkeypatch):
    def fail(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", fail)

    with pytest.raises(UnwritableError, match=r"ct_recon: cannot be written \(No space left.*make room"):
        derive(source, tmp_path / "ct_recon")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["p1"]


def test_a_source_that_goes_away_on_the_way_is_named(source):
    path = next(source.iterdir())
    path.write_bytes(path.read_bytes()[:200])

    with pytest.raises(VolumeError, match=rf"{path.name}: can no longer be read"):
        read_raw_elements(path, (0x00100010,))


def test_a_folder_that_cannot_take_its_place_gives_the_old_one_back(tmp_path, monkeypatch):
    target = tmp_path / "result"
    target.mkdir()
    (target / "old").write_text("old")
    rename = os.rename

    def fail(source, destination):
        if ".unfinished_" in str(source):
            raise OSError("no")
        rename(source, destination)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="no"), complete_or_absent_folder(target) as folder:
        (folder / "new").write_text("new")

    assert [path.name for path in tmp_path.rglob("*")] == ["result", "old"]
