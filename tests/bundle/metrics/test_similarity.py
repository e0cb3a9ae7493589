"""SSIM in space and at several scales, against scikit-image and MONAI."""

import math

import numpy as np
import pytest
import torch
from monai.metrics.regression import MultiScaleSSIMMetric
from skimage.metrics import structural_similarity

from bundle.metrics.similarity import ms_ssim_2d, ssim_3d

WINDOW = (-1000.0, 1000.0)


def pair(shape):
    generator = np.random.default_rng(7)
    x, y, z = np.meshgrid(*(np.linspace(0, 9, n) for n in shape), indexing="ij")
    image = 1400 * np.sin(x) * np.cos(y + z) - 200
    recon = image + generator.normal(0, 60, shape)
    return [torch.from_numpy(volume.round().astype(np.int16)) for volume in (image, recon)]


@pytest.mark.parametrize("shape", [(33, 21, 9), (7, 12, 7), (30, 31, 40)])
def test_ssim_in_space_equals_scikit_image(shape):
    image, recon = pair(shape)
    real, fake = (volume.numpy().clip(*WINDOW).astype(float) + 1000 for volume in (image, recon))
    expected = structural_similarity(real, fake, data_range=2000)
    assert ssim_3d(image, recon, *WINDOW) == pytest.approx(expected, abs=1e-6)


def test_ssim_in_space_of_a_volume_with_itself_is_one_and_of_thin_slabs_unknown():
    image, _ = pair((12, 12, 9))
    assert ssim_3d(image, image.clone(), *WINDOW) == pytest.approx(1, abs=1e-12)
    assert math.isnan(ssim_3d(image[..., :6], image[..., :6], *WINDOW))


def test_ms_ssim_is_that_of_monai_on_shifted_slices():
    image, recon = pair((180, 176, 3))
    slices = [v.clamp(*WINDOW).add(1000).permute(2, 0, 1)[:, None].float() for v in (recon, image)]
    expected = MultiScaleSSIMMetric(spatial_dims=2, data_range=2000.0)(*slices).mean().item()
    assert ms_ssim_2d(image, recon, *WINDOW) == pytest.approx(expected, abs=1e-5)
    assert 0 < expected < 1


def test_ms_ssim_of_small_slices_is_unknown():
    image, recon = pair((175, 180, 2))
    assert math.isnan(ms_ssim_2d(image, recon, *WINDOW))
