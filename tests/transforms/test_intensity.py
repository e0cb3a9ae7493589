import logging

import pytest
import torch
from monai.data import MetaTensor

from transforms.intensity import InverseHUWindowd, PrepareHUBatch, ScaleHUWindowd

WINDOWS = [(-1000, 1000), (-1024, 3071), (-1350, 150), (-160, 240), (-1000.5, 999.7), (-32768, 32767)]


@pytest.mark.parametrize("hu_min, hu_max", WINDOWS)
@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
def test_every_whole_hu_of_the_window_comes_back_exactly(hu_min, hu_max, dtype):
    hu = torch.arange(int(hu_min), int(hu_max) + 1).reshape(1, -1, 1, 1)

    scaled = ScaleHUWindowd("image", hu_min, hu_max)({"image": hu.to(dtype)})["image"]
    restored = InverseHUWindowd("image", hu_min, hu_max)({"image": scaled})["image"]

    assert scaled.dtype == torch.float32 and restored.dtype == torch.int16
    assert scaled.min() >= -1 and scaled.max() <= 1
    torch.testing.assert_close(restored.long(), hu, rtol=0, atol=0)


def test_the_ends_of_the_window_are_minus_one_and_one_and_the_rest_is_clipped():
    hu = torch.tensor([-3024.0, -1000.0, 0.0, 1000.0, 3071.0]).reshape(1, 5, 1, 1)

    scaled = ScaleHUWindowd("image", -1000, 1000)({"image": hu})["image"]

    assert scaled.flatten().tolist() == [-1, -1, 0, 1, 1]


def test_a_batch_of_int16_patches_becomes_what_their_volumes_would():
    scale, hu = ScaleHUWindowd("image"), torch.randint(-3024, 3072, (2, 1, 4, 4, 4), dtype=torch.int16)

    image, target = PrepareHUBatch(scale)({"image": hu}, "cpu", non_blocking=True)

    assert image is target and type(image) is torch.Tensor and image.dtype == torch.float32
    expected = [scale({"image": patch.float()})["image"] for patch in hu]
    assert torch.equal(image, torch.stack(expected))


def test_the_input_is_left_as_it_is():
    image = torch.full((1, 2, 2, 2), 3000.0)
    pred = torch.full((1, 2, 2, 2), 0.5)

    ScaleHUWindowd("image")({"image": image})
    InverseHUWindowd("image")({"image": pred})

    assert image.eq(3000).all() and pred.eq(0.5).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_predictions_are_rounded_and_clipped_to_the_window(dtype):
    pred = torch.tensor([-1.5, -1.0, 0.25, 1.0, 7.0], dtype=dtype).reshape(1, 5, 1, 1)

    hu = InverseHUWindowd("pred", -1000, 1000)({"pred": pred})["pred"]

    assert hu.flatten().tolist() == [-1000, -1000, 250, 1000, 1000]


def test_metadata_are_kept():
    image = MetaTensor(torch.zeros(1, 2, 2, 2), meta={"filename_or_obj": "scan.nii.gz"})
    image.affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))

    scaled = ScaleHUWindowd("image")({"image": image})
    restored = InverseHUWindowd("image")(scaled)["image"]

    assert restored.meta["filename_or_obj"] == "scan.nii.gz"
    torch.testing.assert_close(restored.affine, image.affine, rtol=0, atol=0)


def test_clipped_voxels_of_a_file_are_counted_in_the_log(caplog):
    hu = torch.tensor([-3024.0, -1001.0, -1000.0, 1000.0, 1500.0]).reshape(1, 5, 1, 1)

    with caplog.at_level(logging.INFO):
        ScaleHUWindowd("image")({"image": MetaTensor(hu, meta={"filename_or_obj": "scan.nii.gz"})})

    assert "scan.nii.gz: 2 of 5 voxels (40.00 %) below -1000 HU and 1 (20.00 %) above 1000 HU" in caplog.text


def test_patches_do_not_fill_the_log(caplog):
    with caplog.at_level(logging.INFO):
        ScaleHUWindowd("image")({"image": torch.full((1, 2, 2, 2), 3000.0)})

    assert caplog.text == ""


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_prediction_that_is_not_finite_is_refused_by_the_name_of_its_file(number):
    pred = torch.zeros(1, 2, 2, 2)
    pred[0, 1, 0, 1] = number

    with pytest.raises(ValueError, match=r"scan\.nii\.gz: the network's output must be finite, got NaN or"):
        InverseHUWindowd("pred")({"pred": MetaTensor(pred, meta={"filename_or_obj": "scan.nii.gz"})})


@pytest.mark.parametrize("direction", [ScaleHUWindowd, InverseHUWindowd])
@pytest.mark.parametrize(
    "window, message",
    [
        ((1000, -1000), "`hu_min` must be below `hu_max`, got 1000 and -1000"),
        ((40, 40), "`hu_min` must be below `hu_max`, got 40 and 40"),
        ((float("nan"), 1000), "`hu_min` must be a number from -32768 to 32767, or null, got nan"),
        ((-40_000, 1000), "`hu_min` must be a number from -32768 to 32767, or null, got -40000"),
        ((-1000, 40_000), "`hu_max` must be a number from -32768 to 32767, or null, got 40000"),
    ],
)
def test_an_impossible_window_is_refused(direction, window, message):
    with pytest.raises(ValueError, match=message):
        direction("image", *window)
