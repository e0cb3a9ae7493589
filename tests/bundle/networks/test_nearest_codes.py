import pytest
import torch

from bundle.networks.nearest_codes import nearest_codes, nearest_codes_by_blocks


@pytest.mark.parametrize("lookup_bytes", [1, 4 * 128 * 7, None])
@pytest.mark.parametrize("number", [2, 50, 64, 300])
def test_chunked_lookup_equals_brute_force(lookup_bytes, number):
    vectors, codebook = torch.randn(333, 8), torch.randn(number, 8)
    brute = torch.cdist(vectors.double(), codebook.double()).argmin(dim=1)
    assert torch.equal(nearest_codes(vectors, codebook, lookup_bytes), brute)


def test_of_equally_near_codes_the_first_is_taken():
    codebook = torch.randn(200, 8)
    codebook[[3, 90, 150]] = codebook[70].clone()
    assert nearest_codes(codebook[70][None], codebook).item() == 3


def test_vectors_that_are_not_finite_get_an_index_inside_the_codebook():
    vectors = torch.randn(3, 8)
    vectors[0, 2], vectors[1, 5] = float("inf"), float("nan")
    assert nearest_codes(vectors, torch.randn(100, 8)).max() < 100


@pytest.mark.filterwarnings("ignore:.torch.jit.:FutureWarning")
def test_a_traced_lookup_follows_the_number_of_vectors():
    # small chunks, so that a loop frozen at the traced size would miss vectors
    codebook, vectors = torch.randn(100, 8), torch.randn(500, 8)
    traced = torch.jit.trace(lambda some: nearest_codes(some, codebook, 4 * 128 * 16), torch.randn(40, 8))
    assert torch.equal(traced(vectors), nearest_codes(vectors, codebook))


@pytest.mark.parametrize("block", [1, 7, 64, 300, 1024])
def test_a_loop_over_codes_gives_what_the_loop_over_vectors_gives(block):
    codebook, vectors = torch.randn(300, 8), torch.randn(333, 8)
    codebook[[3, 90, 150]] = vectors[0].clone()
    indices = nearest_codes_by_blocks(vectors, codebook, block)
    assert indices[0] == 3
    assert torch.equal(indices, nearest_codes(vectors, codebook))


def test_an_exported_lookup_follows_the_number_of_vectors():
    class Lookup(torch.nn.Module):
        def forward(self, vectors):
            return nearest_codes(vectors, codebook)

    codebook, vectors = torch.randn(2500, 8), torch.randn(500, 8)
    exported = torch.export.export(
        Lookup(), (torch.randn(40, 8),), dynamic_shapes=[{0: torch.export.Dim("n")}]
    )
    assert torch.equal(exported.module()(vectors), nearest_codes(vectors, codebook))
