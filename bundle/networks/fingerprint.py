"""Computes a hash that tells one trained generator from another."""

import hashlib

import torch
from torch import nn


def fingerprint(network: nn.Module) -> str:
    """Returns the SHA-256 of names, types, shapes and values of weights and codebook, as 64 hex digits.

    The codebook's moving averages (`cluster_*`) and counters are left out: codes mean the same without them.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if name.rpartition(".")[2] in ("cluster_size", "cluster_sum", "updates", "initialized"):
            continue
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
