import pytest
import torch

from bundle.networks.discriminators import (
    MIN_PATCH_SIZE,
    SliceDiscriminator,
    VolumeDiscriminator,
    build_discriminators,
)


@pytest.mark.parametrize(
    ("discriminator", "parameters"), [(SliceDiscriminator, 2_763_585), (VolumeDiscriminator, 11_048_769)]
)
def test_discriminators_have_exactly_the_documented_parameters(discriminator, parameters):
    assert sum(parameter.numel() for parameter in discriminator().parameters()) == parameters


@pytest.mark.parametrize(
    ("weights", "names"),
    [((0, 0), []), ((1, 0), ["image"]), ((0, 0.5), ["video"]), ((1, 0.5), ["image", "video"])],
)
def test_only_discriminators_with_a_weight_are_built(weights, names):
    assert list(build_discriminators(*weights)) == names


def test_one_sample_s_logits_do_not_depend_on_the_batch_around_it():
    discriminator, slices = SliceDiscriminator(), torch.randn(3, 1, 32, 32)
    torch.testing.assert_close(
        discriminator(slices)[-1][:1], discriminator(slices[:1])[-1], rtol=0, atol=1e-5
    )


def test_discriminators_hold_no_buffer_that_moves_while_they_are_frozen():
    assert not list(build_discriminators(1, 1).buffers())


def test_the_smallest_patch_passes_and_a_smaller_one_does_not():
    discriminator = SliceDiscriminator()
    assert torch.isfinite(discriminator(torch.randn(1, 1, MIN_PATCH_SIZE, MIN_PATCH_SIZE))[-1]).all()
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        discriminator(torch.randn(1, 1, MIN_PATCH_SIZE - 8, MIN_PATCH_SIZE - 8))
