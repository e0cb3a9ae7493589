"""A complete file of a small network, and what torch alone would write."""

import io

import pytest
import torch
from torch import nn

from bundle.checkpoints.file import network_settings, write_checkpoint

SETTINGS = network_settings("default", "ema", 1024, -1000, 1000)


@pytest.fixture
def checkpoint(tmp_path):
    """A complete file of a small network."""
    path = tmp_path / "model.pt"
    write_checkpoint(path, {"model": nn.Linear(30, 40).state_dict(), "network": SETTINGS})
    return path


def saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()
