import logging
import multiprocessing
import os
import pickle
import shutil
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from bundle.data.store.file import read_layout
from bundle.data.store.store import PatchStore, StoreError
from bundle.data.volumes.fingerprint import voxel_fingerprint
from bundle.data.volumes.reading import VolumeError
from tests.bundle.data.store.conftest import VOXELS, case_of, maps


@pytest.mark.parametrize(
    "diagonal, axes", [((1, 1, 1), (0, 1, 2)), ((-1, -1, 1), (0, 1, 2)), ((1, -1, -1), (2, 0, 1))], ids=str
)
def test_a_map_holds_the_voxels_in_ras_order(save_nifti, store, diagonal, axes):
    affine = np.eye(4)
    affine[:3, :3] = np.diag(np.array(diagonal) * (0.7, 0.8, 1.5))[:, axes]
    path = save_nifti(VOXELS, affine)

    (volume,) = store.prepare([case_of(path)])

    expected = nib.as_closest_canonical(nib.load(path))
    np.testing.assert_array_equal(volume.read(), np.asanyarray(expected.dataobj))
    np.testing.assert_allclose(volume.spacing_mm, expected.header.get_zooms(), rtol=1e-6)
    record = read_layout(volume.path).record
    np.testing.assert_allclose(record["affine"], expected.affine)
    assert (record["minimum"], record["maximum"]) == (VOXELS.min(), VOXELS.max())
    assert volume.case == case_of(path) and volume.shape == expected.shape
    assert record["voxel_fingerprint"] == volume.voxel_fingerprint() == voxel_fingerprint(volume.read())
    assert not list(store.cache_dir.glob("*.voxels"))


def test_fractions_are_rounded_and_values_beyond_int16_clipped(save_nifti, store):
    voxels = np.zeros((20, 18, 40), np.float32)
    voxels[0, 0, :4] = (-40_000, 0.6, -0.6, 40_000)

    (volume,) = store.prepare([case_of(save_nifti(voxels))])

    assert volume.read()[0, 0, :4].tolist() == [-32768, 1, -1, 32767]
    assert volume.voxel_fingerprint() == voxel_fingerprint(voxels)


def test_nothing_of_the_sources_path_is_written(save_nifti, store):
    path = save_nifti(VOXELS, name="Name_Given/ct.nii.gz")

    (volume,) = store.prepare([case_of(path)])

    assert "Name" not in volume.path.name + volume.path.with_suffix(".json").read_text(encoding="utf-8")
    assert b"Name" not in volume.path.read_bytes()
    assert volume.name == "ct"


def test_a_map_is_made_once_and_found_again(save_nifti, store, caplog):
    cases = [case_of(save_nifti(VOXELS)), case_of(save_nifti(VOXELS // 2))]
    store.prepare(cases[:1])
    before = (store.prepare(cases[:1])[0].path).stat().st_mtime_ns

    with caplog.at_level(logging.INFO):
        first, second = PatchStore(store.cache_dir).prepare(cases)

    assert first.path.stat().st_mtime_ns == before
    assert f"patch store {store.cache_dir}: reused 1 volume, made 1" in caplog.text
    np.testing.assert_array_equal(second.read(), VOXELS // 2)


def test_a_changed_source_gets_a_new_map(save_nifti, store):
    path = save_nifti(VOXELS)
    (before,) = store.prepare([case_of(path)])
    save_nifti(VOXELS // 2, name=path.name)
    os.utime(path, ns=(0, 0))

    (after,) = store.prepare([case_of(path)])

    assert after.path != before.path
    np.testing.assert_array_equal(after.read(), VOXELS // 2)


DAMAGES = {
    "truncated": lambda volume: os.truncate(volume.path, 1000),
    "without its last byte": lambda volume: os.truncate(volume.path, volume.path.stat().st_size - 1),
    "empty": lambda volume: os.truncate(volume.path, 0),
    "missing": lambda volume: volume.path.unlink(),
    "another file": lambda volume: volume.path.write_bytes(b"1" * 5000),
    "wrong record": lambda volume: flip(volume.path, -100),
    "missing counts": lambda volume: volume.path.with_suffix(".json").unlink(),
    "wrong counts": lambda volume: volume.path.with_suffix(".json").write_text("[1]"),
}


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_map_is_rebuilt(save_nifti, store, damage):
    case = case_of(save_nifti(VOXELS))
    (volume,) = store.prepare([case])
    DAMAGES[damage](volume)

    (rebuilt,) = store.prepare([case])

    np.testing.assert_array_equal(rebuilt.read(), VOXELS)
    assert rebuilt.outside_window(-1000, 1000)[0] == np.count_nonzero(VOXELS < -1000)


def prepare_and_sum(cache_dir, case, barrier, sums):
    barrier.wait()
    (volume,) = PatchStore(cache_dir).prepare([case])
    sums.put(int(volume.read().sum(dtype=np.int64)))


def test_two_processes_may_prepare_one_store_at_once(save_nifti, store):
    case = case_of(save_nifti(VOXELS))
    context = multiprocessing.get_context("spawn")
    barrier, sums = context.Barrier(2), context.Queue()
    process = context.Process(target=prepare_and_sum, args=(store.cache_dir, case, barrier, sums))

    process.start()
    prepare_and_sum(store.cache_dir, case, barrier, sums)
    results = [sums.get(timeout=60) for _ in range(2)]
    process.join()

    assert results == [VOXELS.sum(dtype=np.int64)] * 2
    assert len(maps(store)) == 2, "one map, one record, nothing unfinished"


@pytest.mark.parametrize(
    "start, size", [((0, 0, 0), (20, 18, 40)), ((3, 5, 17), (8, 4, 16)), ((12, 14, 24), (8, 4, 16))]
)
def test_a_patch_is_the_box_of_the_volume(save_nifti, store, start, size):
    (volume,) = store.prepare([case_of(save_nifti(VOXELS))])

    patch = store.read_patch(volume, start, size)

    box = tuple(slice(first, first + length) for first, length in zip(start, size, strict=True))
    np.testing.assert_array_equal(patch, VOXELS[box])
    assert patch.flags.writeable and patch.flags.c_contiguous and patch.dtype == np.int16


def test_what_lies_past_the_end_is_padded(save_nifti, store):
    (volume,) = store.prepare([case_of(save_nifti(VOXELS))])

    patch = store.read_patch(volume, (0, 10, 0), (24, 16, 40), pad_value=-1000)

    expected = np.full((24, 16, 40), -1000)
    expected[:20, :8] = VOXELS[:, 10:]
    np.testing.assert_array_equal(patch, expected)


@pytest.mark.parametrize("start", [(-1, 0, 0), (20, 0, 0), (0, 0, 40)])
def test_a_patch_from_outside_is_refused(save_nifti, store, start):
    (volume,) = store.prepare([case_of(save_nifti(VOXELS))])

    with pytest.raises(ValueError, match=r"`start` must lie inside the volume \(20, 18, 40\), got"):
        store.read_patch(volume, start, (4, 4, 4))


def test_store_and_volumes_can_be_pickled(save_nifti, store):
    volumes = store.prepare([case_of(save_nifti(VOXELS))])

    again, (volume,) = pickle.loads(pickle.dumps((store, volumes)))

    np.testing.assert_array_equal(again.read_patch(volume, (1, 2, 3), (4, 4, 4)), VOXELS[1:5, 2:6, 3:7])


@pytest.mark.parametrize("window", [(-1000, 1000), (-2048, 3071), (-1000.5, 40.2)])
def test_voxels_outside_a_window_are_counted_once(save_nifti, store, window):
    (volume,) = store.prepare([case_of(save_nifti(VOXELS))])
    expected = (np.count_nonzero(VOXELS < window[0]), np.count_nonzero(VOXELS > window[1]))

    assert volume.outside_window(*window)[:2] == expected
    volume.path.unlink()
    assert volume.outside_window(*window)[:2] == expected, "taken from the record"


def test_a_bad_volume_leaves_no_unfinished_map(save_nifti, store):
    path = save_nifti(np.full((20, 18, 40), np.nan, np.float32))

    with pytest.raises(VolumeError, match="NaN or infinite voxels"):
        store.prepare([case_of(path)])
    assert maps(store) == []


def test_a_missing_volume_is_named_before_anything_is_made(save_nifti, store, tmp_path):
    with pytest.raises(VolumeError, match=r"gone\.nii\.gz: no such file"):
        store.prepare([case_of(save_nifti(VOXELS)), case_of(tmp_path / "gone.nii.gz")])
    assert not store.cache_dir.exists()


def test_a_cache_folder_that_is_a_file_is_refused(save_nifti, tmp_path):
    (tmp_path / "cache").touch()

    with pytest.raises(StoreError, match=r"cache: cannot be used \(File exists\); give another --cache_dir"):
        PatchStore(tmp_path / "cache").prepare([case_of(save_nifti(VOXELS))])


def test_a_disk_that_is_too_small_is_refused_before_it_is_full(save_nifti, store, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))

    with pytest.raises(
        StoreError,
        match=r"about 0\.0 GB are needed for 1 volume, 0\.0 GB are free; make room or give",
    ):
        store.prepare([case_of(save_nifti(VOXELS))])
    assert maps(store) == []


def test_what_a_killed_run_left_does_not_count_as_full(save_nifti, store, monkeypatch):
    left = store.cache_dir / ".unfinished_0123abcd_volume.ctpa"
    store.cache_dir.mkdir()
    left.write_bytes(b"part")
    os.utime(left, (0, 0))
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: SimpleNamespace(free=10 if left.exists() else 10**9)
    )

    (volume,) = store.prepare([case_of(save_nifti(VOXELS))])

    assert volume.path.exists() and not left.exists()
