import pytest
import torch

from bundle.networks.denoiser import build_denoiser
from bundle.networks.quantizer import NetworkSettingError


def test_latents_and_positions_become_noise_of_the_latents_shape():
    network = build_denoiser([32, 32], 8, [24, 16, 8])

    assert network(torch.randn(1, 11, 6, 4, 2), torch.tensor([3])).shape == (1, 8, 6, 4, 2)


@pytest.mark.parametrize(
    ("channels", "patch_size", "message"),
    [
        ([32, 48], [32, 32, 32], r"`diffusion_channels` must be multiples of 32, got \[32, 48\]"),
        ([], [32, 32, 32], r"`diffusion_channels` must be multiples of 32, got \[\]"),
        ([32, 32, 32], [32, 24, 32], "`patch_size` must be made of multiples of 16 voxels for 3 levels"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_name(channels, patch_size, message):
    with pytest.raises(NetworkSettingError, match=message):
        build_denoiser(channels, 8, patch_size)
