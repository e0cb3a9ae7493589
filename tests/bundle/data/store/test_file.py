import multiprocessing
import os
import resource
import signal

import nibabel as nib
import numpy as np
import pytest

from bundle.data.store import file as volume_file
from bundle.data.store.export import export_volume
from bundle.data.store.store import PatchStore, StoreError
from tests.bundle.data.store.conftest import VOXELS, case_of, maps


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)


def write_beyond_the_limit(cache_dir, case, messages):
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    try:
        PatchStore(cache_dir).prepare([case])
    except StoreError as error:
        messages.put(str(error))


def test_a_full_disk_is_told_and_leaves_nothing(save_nifti, store):
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    arguments = (store.cache_dir, case_of(save_nifti(VOXELS)), messages)
    process = context.Process(target=write_beyond_the_limit, args=arguments)

    process.start()
    message = messages.get(timeout=60)
    process.join()

    assert "cache: writing failed (File too large); make room or give another --cache_dir" in message
    assert maps(store) == []


def prepare_and_die(cache_dir, case):
    volume_file.Writer.finish = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
    PatchStore(cache_dir).prepare([case])


def test_what_a_killed_process_left_is_not_trusted(save_nifti, store):
    case = case_of(save_nifti(VOXELS))
    process = multiprocessing.get_context("spawn").Process(
        target=prepare_and_die, args=(store.cache_dir, case)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and all(name.startswith(".") for name in maps(store))

    (volume,) = store.prepare([case])

    np.testing.assert_array_equal(volume.read(), VOXELS)


def test_a_damaged_cube_is_refused_with_store_file_and_source(save_nifti, store):
    case = case_of(save_nifti(VOXELS))
    (volume,) = store.prepare([case])
    flip(volume.path, 100)

    with pytest.raises(StoreError, match=rf"{volume.path}: is damaged .*{case['image']}"):
        store.read_patch(volume, (0, 0, 0), (8, 8, 8))


def test_no_flipped_byte_gives_wrong_voxels_or_a_crash(save_nifti, store):
    (volume,) = store.prepare([case_of(save_nifti(VOXELS))])
    content = volume.path.read_bytes()

    for place in np.random.default_rng(1).integers(len(content), size=300):
        flip(volume.path, place)
        try:
            voxels = store.read_patch(volume, (0, 0, 0), VOXELS.shape)
        except StoreError:
            voxels = VOXELS
        np.testing.assert_array_equal(voxels, VOXELS)
        volume.path.write_bytes(content)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)], ids=str)
def test_an_exported_volume_equals_its_source(save_nifti, store, tmp_path, axes):
    affine = np.eye(4)
    affine[:3, :3] = np.diag((-0.7, 0.8, -1.5))[:, axes]
    affine[:3, 3] = (10, -20, 30.5)
    source = save_nifti(VOXELS, affine)
    (volume,) = store.prepare([case_of(source)])

    export_volume(volume.path, tmp_path / "back.nii.gz")

    expected, back = nib.load(source), nib.load(tmp_path / "back.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(back.dataobj), np.asanyarray(expected.dataobj))
    np.testing.assert_array_equal(back.affine, expected.affine)
    assert back.get_data_dtype() == np.int16


def test_free_text_of_the_header_is_not_kept(store, tmp_path):
    image = nib.Nifti1Image(VOXELS, np.eye(4))
    image.header["descrip"] = b"Name_Given"
    nib.save(image, tmp_path / "ct.nii.gz")
    (volume,) = store.prepare([case_of(tmp_path / "ct.nii.gz")])

    export_volume(volume.path, tmp_path / "back.nii.gz")

    assert nib.load(tmp_path / "back.nii.gz").header["descrip"] == b""


def test_a_file_of_the_store_is_taken_as_it_is(save_nifti, store, tmp_path):
    (volume,) = store.prepare([case_of(save_nifti(VOXELS))])

    (again,) = PatchStore(tmp_path / "other").prepare([case_of(volume.path)])

    assert again.path == volume.path and not (tmp_path / "other").exists()
    np.testing.assert_array_equal(again.read(), VOXELS)


def test_a_volume_of_several_cubes_comes_back(save_nifti, store):
    voxels = np.random.default_rng(2).integers(-1000, 1000, (70, 66, 150)).astype(np.int16)
    affine = np.diag([-0.7, 0.8, -1.5, 1])

    (volume,) = store.prepare([case_of(save_nifti(voxels, affine))])

    np.testing.assert_array_equal(volume.read(), voxels[::-1, :, ::-1])
    patch = store.read_patch(volume, (60, 50, 60), (8, 16, 80))
    np.testing.assert_array_equal(patch, voxels[::-1, :, ::-1][60:68, 50:66, 60:140])
