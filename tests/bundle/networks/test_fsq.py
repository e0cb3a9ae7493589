import pytest
import torch

from bundle.networks.fsq import FSQ


@pytest.fixture
def fsq():
    return FSQ(1024, 8).train()


def test_decoding_indices_gives_exactly_what_the_decoder_saw(fsq):
    with torch.no_grad():
        quantized = fsq(torch.randn(2, 8, 3, 4, 5) * 5)
        torch.testing.assert_close(
            fsq.indices_to_codes(quantized.indices), quantized.codes, rtol=0, atol=1e-6
        )


def test_every_index_is_a_grid_point_of_its_own(fsq):
    indices = torch.arange(1024).view(1, 8, 8, 16)
    codes = fsq.indices_to_codes(indices).movedim(1, -1).reshape(1024, 8)
    assert torch.cdist(codes, codes).fill_diagonal_(1).min() > 1e-4


def test_indices_survive_the_way_through_the_grid(fsq):
    indices = torch.randint(0, 1024, (1, 4, 4, 4))
    digits = indices[:, None] // fsq.basis[:, None, None, None] % 4
    assert torch.equal(fsq._indices(digits.float() - 2), indices)


def test_wide_latents_reach_all_four_levels_and_no_other(fsq):
    rounded = fsq._bound(torch.randn(1, 8, 10, 10, 10) * 20).round()
    assert rounded.unique().tolist() == [-2, -1, 0, 1]


def test_rounding_passes_the_gradient_on(fsq):
    latent = torch.randn(1, 8, 2, 2, 2, requires_grad=True)
    fsq(latent).codes.sum().backward()
    rounded_gradient = latent.grad.clone()
    latent.grad = None
    fsq._codes(fsq._bound(latent)).sum().backward()
    torch.testing.assert_close(rounded_gradient, latent.grad)


def test_counts_of_all_micro_batches_are_handed_over_once(fsq):
    latent = torch.randn(4, 8, 3, 3, 3)
    for micro in latent.split(1):
        fsq(micro)
    fsq.update()
    assert torch.equal(
        fsq.counts().seen, torch.bincount(fsq.quantize(latent).flatten(), minlength=1024).float()
    )
    assert fsq._pending is None


def test_there_is_no_commitment_term(fsq):
    assert fsq(torch.randn(1, 8, 2, 2, 2)).commitment_loss == 0


def test_a_number_of_codes_that_is_no_power_of_four_is_refused():
    with pytest.raises(ValueError, match="`num_embeddings` must be a power of 4 .* got 2048"):
        FSQ(2048, 8)
