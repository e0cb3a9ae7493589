"""Tells one trained generator from another."""

import hashlib

import torch
from torch import nn


def fingerprint(network: nn.Module) -> str:
    """SHA-256 over names, types, shapes and values of the weights and the codebook, as 64 hex digits.

    Moving averages of the codebook (`cluster_*`) and counters do not decide what codes mean and are left out.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if name.rpartition(".")[2] in ("cluster_size", "cluster_sum", "updates", "initialized"):
            continue
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
