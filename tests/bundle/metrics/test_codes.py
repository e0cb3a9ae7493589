"""Usage and cost of codes that can be counted by hand."""

import numpy as np
import pytest

from bundle.metrics.codes import bits_per_voxel, code_use, nominal_bits_per_voxel


def test_equally_frequent_codes_have_their_number_as_perplexity():
    found = code_use(np.array([5, 5, 0, 5, 5, 0, 0, 0]))
    assert found == pytest.approx((0.5, 4, 2))


def test_a_rare_code_is_used_but_adds_little():
    usage, perplexity, entropy = code_use(np.array([999, 1]))
    assert usage == 1 and 1 < perplexity < 1.02 and entropy == pytest.approx(0.0114, abs=1e-4)


def test_no_codes_at_all_are_no_error():
    assert code_use(np.zeros(4, int)) == code_use(np.zeros(0, int)) == (0, 1, 0)


def test_bits_per_voxel_are_those_of_the_design():
    assert nominal_bits_per_voxel(16384, 4) == pytest.approx(0.21875)
    assert bits_per_voxel(1000, 4000) == 2
