import numpy as np
import pytest
import torch

from bundle.data.volumes.reading import VolumeError
from transforms.load import LoadImageCTPAd

VOXELS = np.random.default_rng(0).integers(-1024, 3072, (7, 6, 5)).astype(np.int16)


def test_a_volume_is_loaded_as_float32_hu_with_a_channel(save_nifti):
    path = save_nifti(VOXELS)

    image = LoadImageCTPAd("image")({"image": path})["image"]

    assert image.dtype == torch.float32 and image.meta["filename_or_obj"] == str(path)
    np.testing.assert_array_equal(image.numpy(), VOXELS[None])


def test_other_entries_about_the_image_are_left_alone(save_nifti):
    path = str(save_nifti(VOXELS))

    item = LoadImageCTPAd("image")({"image": path, "image_path": path, "label": "unread.nii.gz"})

    assert item["image_path"] == path and item["label"] == "unread.nii.gz"


def test_a_refused_file_is_refused_in_the_readers_own_words(save_nifti):
    path = save_nifti(np.zeros((7, 6, 5, 2), np.int16))

    with pytest.raises(VolumeError, match=r"scan\.nii\.gz: must hold one volume, got 2"):
        LoadImageCTPAd("image")({"image": path})


def test_no_word_is_lost_on_monais_reader_for_gpus(caplog, recwarn):
    LoadImageCTPAd("image")

    assert "nvImageCodec" not in caplog.text
    assert len(recwarn) == 0
