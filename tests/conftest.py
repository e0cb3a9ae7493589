"""What every test may use: seeds, and a generator small enough for two cores."""

import random

import numpy as np
import pytest
import torch

from bundle.networks.quantizer import EMACodebook
from bundle.networks.vqgan import VQGAN


@pytest.fixture(autouse=True)
def seeds():
    """The same random numbers for every test, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def tiny_vqgan():
    """Makes a generator of 2 levels with a codebook that has seen data; eval mode."""

    def make(num_embeddings: int = 32, num_res_layers: int = 1) -> VQGAN:
        network = VQGAN((8, 16), num_res_layers, EMACodebook(num_embeddings, 8))
        with torch.no_grad():
            network.quantizer.initialize(network.encode_latent(torch.rand(1, 1, 32, 32, 32) * 2 - 1))
        return network.eval()

    return make
