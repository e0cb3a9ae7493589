import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from transforms.load import LoadImageCTPAd
from transforms.spatial import OrientRASd, RestoreOrientationd

VOXELS = np.random.default_rng(0).integers(-1024, 3072, (7, 6, 5)).astype(np.int16)
AXES = [
    "".join(ends)
    for order in itertools.permutations(["LR", "AP", "IS"])
    for ends in itertools.product(*order)
]


def affine_of(axcodes, spacing=(0.7, 0.8, 2.5), tilt=0.0):
    """An affine whose axes point along `axcodes`, tilted by `tilt` radians about x and y."""
    to_axes = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(tuple(axcodes)), (1, 1, 1))
    cos, sin = np.cos(tilt), np.sin(tilt)
    turn_x = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    turn_y = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    affine = np.eye(4)
    affine[:3, :3] = turn_x @ turn_y @ np.linalg.inv(to_axes[:3, :3]) @ np.diag(spacing)
    affine[:3, 3] = (-123.4, 56.7, -890.1)
    return affine


def load(path):
    return OrientRASd("image")(LoadImageCTPAd("image")({"image": str(path)}))


@pytest.mark.parametrize("axcodes", AXES)
def test_any_of_the_48_orientations_comes_back_exactly(save_nifti, axcodes):
    path = save_nifti(VOXELS, affine_of(axcodes, tilt=0.2))
    item = load(path)

    restored = RestoreOrientationd("pred", "image")({**item, "pred": item["image"].as_tensor()})["pred"]

    assert nib.aff2axcodes(item["image"].affine.numpy()) == ("R", "A", "S")
    np.testing.assert_array_equal(restored[0].numpy(), VOXELS)
    np.testing.assert_array_equal(restored.affine.numpy(), nib.load(path).affine)


@pytest.mark.parametrize("axcodes", ["LPS", "LAS", "PSR"])
def test_oriented_voxels_stay_at_their_place_in_the_patient(save_nifti, axcodes):
    path = save_nifti(VOXELS, affine_of(axcodes, tilt=0.2))

    image = load(path)["image"]

    expected = nib.as_closest_canonical(nib.load(path))
    np.testing.assert_array_equal(image[0].numpy(), expected.get_fdata())
    np.testing.assert_allclose(image.affine.numpy(), expected.affine, atol=1e-9)


def test_a_prediction_of_an_input_that_was_never_reoriented_stays(save_nifti):
    item = LoadImageCTPAd("image")({"image": str(save_nifti(VOXELS, affine_of("LPS")))})

    restored = RestoreOrientationd("pred", "image")({**item, "pred": item["image"].as_tensor()})["pred"]

    np.testing.assert_array_equal(restored[0].numpy(), VOXELS)


def test_the_metadata_of_the_prediction_are_the_files(save_nifti):
    path = save_nifti(VOXELS, affine_of("PSR"))
    item = load(path)
    item["pred"] = MetaTensor(item["image"].as_tensor(), meta={"affine": torch.eye(4), "stray": 1})

    restored = RestoreOrientationd("pred", "image")(item)["pred"]

    assert restored.meta["filename_or_obj"] == str(path) and "stray" not in restored.meta
    assert tuple(restored.meta["spatial_shape"]) == tuple(item["image"].meta["spatial_shape"]) == (7, 6, 5)


def test_the_orientation_can_be_inverted_by_monai_too(save_nifti):
    path = save_nifti(VOXELS, affine_of("LPS"))
    orient = OrientRASd("image")

    inverted = orient.inverse(orient(LoadImageCTPAd("image")({"image": str(path)})))["image"]

    np.testing.assert_array_equal(inverted[0].numpy(), VOXELS)


def test_an_input_without_metadata_is_refused():
    item = {"image": torch.zeros(1, 4, 4, 4), "pred": torch.zeros(1, 4, 4, 4)}

    with pytest.raises(ValueError, match="`image` must hold `original_affine`; load it by LoadImageCTPAd"):
        RestoreOrientationd("pred", "image")(item)


def test_a_cropped_prediction_is_refused(save_nifti):
    item = load(save_nifti(VOXELS))
    item["pred"] = item["image"].as_tensor()[:, :4]

    with pytest.raises(
        ValueError, match=r"`pred` must have the shape of `image`, \(7, 6, 5\), got \(4, 6, 5\)"
    ):
        RestoreOrientationd("pred", "image")(item)


def test_an_input_that_left_its_grid_is_refused(save_nifti):
    item = load(save_nifti(VOXELS))
    item["image"].affine = torch.diag(torch.tensor([1.0, 1.0, 1.0, 1.0]))

    with pytest.raises(ValueError, match="`image` must lie on the grid of its file"):
        RestoreOrientationd("pred", "image")({**item, "pred": item["image"].as_tensor()})
