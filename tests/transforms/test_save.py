from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, SaveImaged

from bundle.data.cases.provenance import Provenance
from bundle.data.volumes.reading import VolumeError
from transforms.intensity import InverseHUWindowd, ScaleHUWindowd
from transforms.load import LoadImageCTPAd
from transforms.save import SaveImageCTPAd
from transforms.spatial import OrientRASd, RestoreOrientationd

SHAPE = (13, 10, 7)
HU = np.random.default_rng(0).integers(-1000, 1001, SHAPE)
TURN = np.array([[0.96, 0.2, -0.15], [-0.18, 0.97, 0.1], [0.17, -0.08, 0.98]])
AFFINES = {
    "RAS": np.diag([0.7, 0.7, 0.7, 1]),
    "LPS anisotropic": np.diag([-0.703125, -0.703125, 2.5, 1]),
    "LAS": np.diag([-0.7, 0.7, 1.25, 1]),
    "permuted": np.array([[0, 0, 3.0, 1], [-0.6, 0, 0, 2], [0, 0.5, 0, 3], [0, 0, 0, 1]]),
    "oblique": np.block(
        [[TURN @ np.diag([0.61, 0.62, 2.4]), np.array([[71.3], [-40.1], [11.7]])], [0, 0, 0, 1]]
    ),
    "oblique LPS": np.block(
        [[TURN @ np.diag([-0.61, -0.62, 2.4]), np.array([[7.3], [4.1], [1.7]])], [0, 0, 0, 1]]
    ),
}


def reconstruct(path, output_dir, **save):
    """The whole way of inference with an identity for a network that returns a plain tensor."""
    before = Compose([LoadImageCTPAd("image"), OrientRASd("image"), ScaleHUWindowd("image")])
    after = Compose(
        [
            InverseHUWindowd("pred"),
            RestoreOrientationd("pred", "image"),
            SaveImageCTPAd("pred", output_dir, **save),
        ]
    )
    item = before({"image": str(path)})
    return after({**item, "pred": item["image"].as_tensor().clone()})


def save_coded(path, voxels, affine, sform_code, qform_code):
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, code=sform_code)
    image.set_qform(affine, code=qform_code)
    path.parent.mkdir(exist_ok=True)
    nib.save(image, path)


def assert_same_geometry(written, source):
    assert written.shape == source.shape
    np.testing.assert_array_equal(written.affine, source.affine)
    for form in ("get_sform", "get_qform"):
        (matrix, code), (expected, expected_code) = (
            getattr(image, form)(coded=True) for image in (written, source)
        )
        assert int(code) == int(expected_code)
        np.testing.assert_array_equal(matrix, expected)
    np.testing.assert_array_equal(written.header.get_zooms(), source.header.get_zooms())


@pytest.mark.parametrize("codes", [(1, 1), (2, 0), (0, 1), (0, 0)], ids=str)
@pytest.mark.parametrize("name", AFFINES)
def test_an_identity_network_changes_no_voxel_and_no_bit_of_the_geometry(tmp_path, name, codes):
    path = tmp_path / "data" / "scan.nii.gz"
    save_coded(path, HU.astype(np.int16), AFFINES[name], *codes)

    reconstruct(path, tmp_path / "out")

    written = nib.load(tmp_path / "out" / "scan_recon.nii.gz")
    assert_same_geometry(written, nib.load(path))
    assert written.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), HU)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_an_identity_network_keeps_the_voxels_of_every_stored_type(tmp_path, save_nifti, dtype):
    limits = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else np.iinfo(np.int16)
    voxels = np.clip(HU, max(limits.min, -1000), min(limits.max, 1000)).astype(dtype)

    reconstruct(save_nifti(voxels), tmp_path / "out")

    written = nib.load(tmp_path / "out" / "scan_recon.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), voxels)


def test_an_identity_network_keeps_the_hu_of_a_scaled_file(tmp_path):
    image = nib.Nifti1Image((HU + 1024).astype(np.uint16), AFFINES["LAS"])
    image.header.set_slope_inter(1, -1024)
    path = tmp_path / "scan.nii"
    image.to_filename(path)
    raw = path.read_bytes()
    path.write_bytes(raw[:352] + (HU + 1024).astype("<u2").tobytes(order="F"))

    reconstruct(path, tmp_path / "out")

    np.testing.assert_array_equal(nib.load(path).get_fdata(), HU)
    np.testing.assert_array_equal(nib.load(tmp_path / "out" / "scan_recon.nii.gz").get_fdata(), HU)


def test_voxels_outside_the_window_are_clipped_and_no_others_change(tmp_path, save_nifti):
    voxels = (HU * 3).astype(np.int16)

    reconstruct(save_nifti(voxels), tmp_path / "out")

    written = nib.load(tmp_path / "out" / "scan_recon.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), np.clip(voxels, -1000, 1000))


def test_an_axis_of_one_is_dropped_on_the_way(tmp_path, save_nifti):
    path = save_nifti(HU.astype(np.int16)[..., None], AFFINES["LPS anisotropic"])

    reconstruct(path, tmp_path / "out")

    written = nib.load(tmp_path / "out" / "scan_recon.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), HU)
    np.testing.assert_array_equal(written.affine, nib.load(path).affine)


def test_volumes_of_one_name_in_different_folders_do_not_meet(tmp_path, save_nifti):
    paths = [save_nifti(HU.astype(np.int16) // (n + 1), name=f"p{n}/ct.nii.gz") for n in range(2)]

    for path in paths:
        reconstruct(path, tmp_path / "out", data_root_dir=tmp_path / "data")

    for n in range(2):
        written = nib.load(tmp_path / "out" / f"p{n}" / "ct_recon.nii.gz")
        np.testing.assert_array_equal(np.asanyarray(written.dataobj), HU // (n + 1))


@pytest.mark.parametrize("root", ["", ".", "scan.nii.gz", "datalist.json"])
def test_a_loose_file_goes_straight_to_the_output_folder(tmp_path, save_nifti, root):
    path = save_nifti(HU.astype(np.int16))

    item = reconstruct(path, tmp_path / "out", data_root_dir=path.parent / root if root else "")

    assert item["pred"].meta["saved_to"] == str(tmp_path / "out" / "scan_recon.nii.gz")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["scan_recon.nii.gz"]


def test_the_input_is_never_overwritten(tmp_path, save_nifti):
    path = save_nifti(HU.astype(np.int16))
    before = path.read_bytes()

    image = LoadImageCTPAd("image")({"image": path})

    with pytest.raises(VolumeError, match=r"scan\.nii\.gz: is the input itself and will not be overwritten"):
        SaveImageCTPAd("image", path.parent, output_postfix="")(image)
    assert path.read_bytes() == before


MADE = Provenance("ab" * 32, {"preset": "lite"})


@pytest.fixture
def saved(tmp_path, save_nifti):
    """A volume, and a transform that has saved its reconstruction."""
    path = save_nifti(HU.astype(np.int16))
    save = SaveImageCTPAd("image", tmp_path / "out")
    save.check([], lambda: MADE)
    save(LoadImageCTPAd("image")({"image": path}))
    return str(path), save


def test_a_result_is_done_if_this_very_run_would_make_it(saved):
    path, save = saved

    assert save.is_done(path) and not save.is_done("/data/other.nii.gz")
    for other in (replace(MADE, model_sha256="cd" * 32), replace(MADE, settings={}), replace(MADE, amp=True)):
        save.check([], lambda made=other: made)
        assert not save.is_done(path)


def test_a_result_that_was_replaced_by_a_killed_process_is_not_done(saved, monkeypatch):
    path, save = saved

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("transforms.save.write_provenance", killed)
    with pytest.raises(KeyboardInterrupt):
        save(LoadImageCTPAd("image")({"image": path}))

    assert save.path_of(path).is_file() and not save.is_done(path)


def test_a_program_that_says_nothing_of_its_model_leaves_no_note_and_not_that_of_another(saved):
    path, save = saved
    save.provenance = None

    save(LoadImageCTPAd("image")({"image": path}))

    assert [file.name for file in save.output_dir.iterdir()] == ["scan_recon.nii.gz"]


def test_a_server_that_drops_monais_save_drops_this_one(tmp_path):
    assert isinstance(SaveImageCTPAd("pred", tmp_path), SaveImaged)


def test_a_volume_without_a_file_is_saved_under_its_key(tmp_path):
    SaveImageCTPAd("pred", tmp_path)({"pred": MetaTensor(torch.from_numpy(HU.astype(np.int16))[None])})

    assert (tmp_path / "pred_recon.nii.gz").is_file()
