"""Laws and oracles of the figures: scikit-image for SSIM, plain numpy for the rest."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.overrides
from skimage.metrics import structural_similarity

from bundle.metrics import reconstruction
from bundle.metrics.reconstruction import reconstruction_figures

WINDOW = (-1000.0, 1000.0)


def _pair(shape: tuple[int, int, int], noise_hu: float = 60.0) -> tuple[np.ndarray, np.ndarray]:
    """A smooth volume that leaves the window at both ends, and a noisy copy; int16 HU."""
    rng = np.random.default_rng(7)
    x, y, z = np.meshgrid(*(np.linspace(0, 9, n) for n in shape), indexing="ij")
    image = 1400 * np.sin(x) * np.cos(y + z) - 200
    recon = image + rng.normal(0, noise_hu, shape)
    return image.round().astype(np.int16), recon.round().astype(np.int16)


def _skimage_ssim(image: np.ndarray, recon: np.ndarray, axis: int) -> float:
    pair = (np.moveaxis(v, axis, 0).clip(*WINDOW) for v in (image, recon))
    real, fake = (v.astype(np.float64) - WINDOW[0] for v in pair)
    return float(
        np.mean([structural_similarity(*pair, data_range=2000) for pair in zip(real, fake, strict=True)])
    )


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shape", [(33, 21, 9), (7, 40, 11), (64, 64, 7)])
def test_ssim_equals_scikit_image_on_odd_shapes(shape: tuple[int, int, int], axis: int) -> None:
    image, recon = _pair(shape)
    figures = reconstruction_figures(torch.from_numpy(image), torch.from_numpy(recon), *WINDOW, axis=axis)
    assert figures.ssim == pytest.approx(_skimage_ssim(image, recon, axis), abs=1e-6)


def test_ssim_equals_scikit_image_where_slices_are_constant() -> None:
    image, recon = _pair((16, 17, 6))
    image[..., :3], recon[..., 1:4] = -1000, 40
    figures = reconstruction_figures(torch.from_numpy(image), torch.from_numpy(recon), *WINDOW)
    assert figures.ssim == pytest.approx(_skimage_ssim(image, recon, 2), abs=1e-6)


def test_ssim_does_not_change_when_the_window_and_both_volumes_move_together() -> None:
    image, recon = (torch.from_numpy(v).clamp(-1000, 1000) for v in _pair((20, 20, 8)))
    moved = reconstruction_figures(image + 1000, recon + 1000, 0, 2000)
    assert reconstruction_figures(image, recon, *WINDOW).ssim == pytest.approx(moved.ssim, abs=1e-12)


def test_psnr_mae_and_rmse_equal_numpy_inside_the_window() -> None:
    image, recon = _pair((31, 20, 13))
    figures = reconstruction_figures(torch.from_numpy(image), torch.from_numpy(recon), *WINDOW)
    error = image.clip(*WINDOW).astype(np.float64) - recon.clip(*WINDOW)
    assert figures.mae_hu == pytest.approx(np.abs(error).mean(), rel=1e-12)
    assert figures.rmse_hu == pytest.approx(np.sqrt((error**2).mean()), rel=1e-12)
    assert figures.psnr == pytest.approx(10 * np.log10(2000**2 / (error**2).mean()), rel=1e-12)
    assert figures.n_voxels == image.size


def test_a_constant_error_gives_its_own_size_and_its_known_psnr() -> None:
    image = torch.zeros(12, 12, 5, dtype=torch.int16)
    figures = reconstruction_figures(image, image + 20, *WINDOW)
    assert (figures.mae_hu, figures.rmse_hu) == (20.0, 20.0)
    assert figures.psnr == pytest.approx(40.0)


def test_identical_volumes_have_infinite_psnr_and_ssim_one() -> None:
    image = torch.from_numpy(_pair((15, 15, 4))[0])
    figures = reconstruction_figures(image, image.clone(), *WINDOW)
    assert figures.psnr == math.inf and figures.mae_hu == 0
    assert figures.ssim == pytest.approx(1.0, abs=1e-12)


def test_voxels_that_differ_only_outside_the_window_count_as_equal() -> None:
    image = torch.full((10, 10, 3), -1000, dtype=torch.int16)
    padded = torch.full((10, 10, 3), -2048, dtype=torch.int16)
    assert reconstruction_figures(padded, image, *WINDOW).mae_hu == 0


@pytest.mark.parametrize("slab_voxels", [1, 900, 10**9])
def test_the_figures_do_not_depend_on_the_slab(slab_voxels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image, recon = (torch.from_numpy(v) for v in _pair((30, 21, 11)))
    expected = reconstruction_figures(image, recon, *WINDOW)
    monkeypatch.setattr(reconstruction, "SLAB_VOXELS", slab_voxels)
    assert reconstruction_figures(image, recon, *WINDOW) == pytest.approx(expected, rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32, torch.float64])
def test_the_figures_do_not_depend_on_the_dtype_and_leave_the_inputs_alone(dtype: torch.dtype) -> None:
    image, recon = (torch.from_numpy(v) for v in _pair((16, 16, 5)))
    expected = reconstruction_figures(image, recon, *WINDOW)
    real, fake = image.to(dtype), recon.to(dtype)
    assert reconstruction_figures(real, fake, *WINDOW) == pytest.approx(expected, rel=1e-12, nan_ok=True)
    assert torch.equal(real, image.to(dtype)) and torch.equal(fake, recon.to(dtype))


def test_a_nan_voxel_is_not_hidden() -> None:
    image = torch.zeros(9, 9, 3)
    recon = image.clone()
    recon[4, 4, 1] = torch.nan
    assert all(math.isnan(value) for value in reconstruction_figures(image, recon, *WINDOW)[:4])


def test_memory_does_not_grow_with_the_volume() -> None:
    # torch's allocations are not traced, so the largest tensor that any step makes is recorded instead
    sizes: list[int] = []

    class Record(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
                sizes.append(result.numel())
            return result

    image = torch.zeros(128, 128, 64, dtype=torch.int16)
    with Record():
        reconstruction_figures(image, image + 1, *WINDOW)
    assert sizes and max(sizes) <= reconstruction.SLAB_VOXELS < image.numel()


@pytest.mark.parametrize(
    ("shape", "recon_shape", "window", "axis", "message"),
    [
        ((8, 8, 8), (8, 8, 9), WINDOW, 2, "volumes .X, Y, Z. of one shape, got .8, 8, 8. and .8, 8, 9."),
        ((1, 8, 8, 8), (1, 8, 8, 8), WINDOW, 2, "drop batch and channel axes"),
        ((8, 8, 8), (8, 8, 8), (100.0, 100.0), 2, "`hu_min` must be below `hu_max`, got 100.0 and 100.0"),
        ((8, 8, 8), (8, 8, 8), WINDOW, 3, "`axis` must be 0, 1 or 2, got 3"),
        ((6, 8, 8), (6, 8, 8), WINDOW, 2, "at least 7 x 7 voxels, got 6 x 8"),
    ],
)
def test_wrong_arguments_are_refused(shape, recon_shape, window, axis, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        reconstruction_figures(torch.zeros(shape), torch.zeros(recon_shape), *window, axis=axis)
