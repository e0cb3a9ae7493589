import pytest
import torch

from bundle.networks.quantizer import EMACodebook


def latent_of(vectors):
    """(N, E) as a latent (1, E, N, 1, 1)."""
    return vectors.t()[None, :, :, None, None].contiguous()


def test_indices_turn_back_into_the_vectors_that_the_decoder_saw():
    codebook = EMACodebook(16, 8).eval()
    codes, _, indices = codebook(torch.randn(2, 8, 3, 4, 5))
    torch.testing.assert_close(codebook.indices_to_codes(indices), codes, rtol=0, atol=1e-6)


def test_straight_through_gradient_is_the_identity():
    codebook, latent = EMACodebook(16, 8).eval(), torch.randn(1, 8, 3, 3, 3, requires_grad=True)
    weights = torch.randn(1, 8, 3, 3, 3)
    (codebook(latent).codes * weights).sum().backward()
    torch.testing.assert_close(latent.grad, weights)


def test_commitment_pulls_the_encoder_and_not_the_codebook():
    codebook, latent = EMACodebook(16, 8).eval(), torch.randn(1, 8, 3, 3, 3, requires_grad=True)
    quantized = codebook(latent)
    quantized.commitment_loss.backward()
    expected = 2 * (latent - codebook.indices_to_codes(quantized.indices)) / latent.numel()
    torch.testing.assert_close(latent.grad, expected.detach())


def test_first_codes_are_vectors_of_the_first_batch():
    codebook, vectors = EMACodebook(16, 8), torch.randn(40, 8)
    codebook.initialize(latent_of(vectors))
    assert all((vectors == code).all(dim=1).any() for code in codebook.embedding)


def test_more_codes_than_vectors_start_apart_from_each_other():
    codebook = EMACodebook(64, 8)
    codebook.initialize(latent_of(torch.randn(10, 8)))
    assert len(codebook.embedding.unique(dim=0)) == 64


def test_a_loaded_codebook_never_starts_again_from_data():
    trained = EMACodebook(16, 8).train()
    trained(torch.randn(1, 8, 4, 4, 4))
    resumed = EMACodebook(16, 8).train()
    resumed.load_state_dict(trained.state_dict())
    resumed(torch.randn(1, 8, 4, 4, 4) + 100)
    assert torch.equal(resumed.embedding, trained.embedding)


def test_one_update_is_the_exponential_moving_average_by_hand():
    codebook = EMACodebook(2, 1, decay=0.9).train()
    codebook.initialize(latent_of(torch.tensor([[0.0], [10.0]])))
    codebook.updates.fill_(1000)  # past the first ones, which use a smaller decay
    codebook(latent_of(torch.tensor([[1.0], [2.0], [3.0], [12.0]])))
    codebook.update(restart=False)
    sizes = torch.tensor([0.9 * 1 + 0.1 * 3, 0.9 * 1 + 0.1 * 1])
    sums = torch.tensor([0.9 * 0 + 0.1 * 6, 0.9 * 10 + 0.1 * 12])
    torch.testing.assert_close(codebook.embedding[:, 0].sort().values, (sums / sizes).sort().values)


@pytest.mark.parametrize(
    ("updates", "decay"), [(0, 1 / 10), (5, 6 / 15), (79, 80 / 89), (80, 0.9), (500, 0.9)]
)
def test_the_first_updates_follow_the_encoder_faster(updates, decay):
    codebook = EMACodebook(2, 1, decay=0.9).train()
    codebook.initialize(latent_of(torch.tensor([[0.0], [10.0]])))
    near_zero = codebook.embedding[:, 0].argmin()
    codebook.updates.fill_(updates)
    codebook(latent_of(torch.ones(1, 1)))
    codebook.update(restart=False)
    torch.testing.assert_close(codebook.embedding[near_zero], torch.tensor([1 - decay]))


def test_micro_batches_make_the_full_batch_s_update():
    whole, split = EMACodebook(16, 8).train(), EMACodebook(16, 8).train()
    latent = torch.randn(4, 8, 4, 4, 4)
    for codebook in (whole, split):
        codebook.initialize(latent)
    whole(latent)
    for micro in latent.split(1):
        split(micro)
    whole.update()
    split.update()
    torch.testing.assert_close(split.state_dict(), whole.state_dict())


def test_forward_in_eval_mode_collects_nothing():
    codebook = EMACodebook(16, 8).train()
    codebook(torch.randn(1, 8, 4, 4, 4))
    codebook.update()
    before = codebook.embedding.clone()
    codebook.eval()(torch.randn(1, 8, 4, 4, 4))
    codebook.update()
    assert torch.equal(codebook.embedding, before)


def test_a_dead_code_restarts_from_the_batch_with_fresh_averages():
    codebook = EMACodebook(64, 8).train()
    codebook.initialize(torch.randn(1, 8, 8, 8, 8))
    codebook.cluster_size[5] = 1e-6
    codebook.embedding[5] = codebook.cluster_sum[5] = 1e3
    vectors = torch.randn(512, 8)
    codebook(latent_of(vectors))
    codebook.update()
    assert codebook.counts().restarts == 1
    assert (vectors == codebook.embedding[5]).all(dim=1).any()
    torch.testing.assert_close(codebook.cluster_sum[5] / codebook.cluster_size[5], codebook.embedding[5])
    torch.testing.assert_close(codebook.cluster_size[5], torch.tensor(8.0), rtol=0.05, atol=0)


def test_no_more_codes_restart_than_the_budget_allows():
    codebook = EMACodebook(128, 8, restart_share=1 / 32).train()
    codebook.initialize(torch.randn(1, 8, 8, 8, 8))
    codebook.cluster_size[:100] = 0
    codebook(torch.randn(1, 8, 8, 8, 8) * 0)
    codebook.update()
    assert codebook.counts().restarts == 4


def test_update_without_restart_leaves_dead_codes_alone():
    codebook = EMACodebook(64, 8).train()
    codebook.initialize(torch.randn(1, 8, 8, 8, 8))
    codebook.embedding[5] = 1e3
    codebook.cluster_size[5] = 0
    codebook.cluster_sum[5] = 0
    codebook(torch.randn(1, 8, 8, 8, 8))
    codebook.update(restart=False)
    assert torch.equal(codebook.embedding[5], torch.full((8,), 1e3))


def test_the_codebook_stays_float32_under_autocast():
    codebook = EMACodebook(16, 8).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes, loss, _ = codebook(torch.randn(1, 8, 4, 4, 4).bfloat16())
    codebook.update()
    assert {codes.dtype, loss.dtype, codebook.embedding.dtype} == {torch.float32}


@pytest.mark.parametrize(("number", "share"), [(1024, 0.25), (1024, 1), (256, 4), (256, 16)])
def test_codes_stay_in_use_and_restarts_stop(number, share):
    # drifting clusters at decay 0.99, where MONAI's quantizer keeps 1 to 85 of 1024 codes;
    # `make bench` runs all four shares at 1024 codes
    generator = torch.Generator().manual_seed(3)
    centres = torch.randn(64, 8, generator=generator) * 2
    velocity = torch.randn(64, 8, generator=generator) * 0.002
    codebook, restarts = EMACodebook(number, 8).train(), []

    def draw(count):
        cluster = torch.randint(64, (count,), generator=generator)
        return centres[cluster] + 0.5 * torch.randn(count, 8, generator=generator)

    for _ in range(300):
        centres += velocity
        codebook(latent_of(draw(int(share * number))))
        codebook.update()
        restarts.append(float(codebook.counts().restarts))
    used = len(codebook.eval().quantize(latent_of(draw(8192))).unique())
    assert used >= 0.9 * number
    assert sum(restarts[-50:]) / 50 < 0.01 * number
