"""Finds the nearest code of each latent vector, in memory that does not grow with the volume.

Dimension letters: E embedding width, K codes, N latent vectors.
"""

import torch
from torch import Tensor


def nearest_codes(vectors: Tensor, codebook: Tensor, lookup_bytes: int | None = None) -> Tensor:
    """Returns the index of the nearest code, by squared distance, of each vector.

    The N x K distances are computed in chunks. Those of a whole volume at K = 16384 would take 151 GiB.

    Args:
        vectors: (N, E) float32.
        codebook: (K, E) float32.
        lookup_bytes: memory that one chunk of distances may take; None = 2 MiB on a CPU, where larger chunks
            fall out of its cache or are new memory each time (up to 5 times as long), 256 MiB on a GPU.

    Returns:
        (N,) int64 in [0, K); the first one where several codes are equally near.
    """
    if not torch.jit.is_scripting():  # nested, because TorchScript cannot compile the inner condition
        if torch.compiler.is_exporting():
            return nearest_codes_by_blocks(vectors, codebook)
    if lookup_bytes is None:
        lookup_bytes = 1 << 28 if vectors.is_cuda else 1 << 21  # TorchScript takes 2**28 for a float
    return _nearest_codes(vectors, codebook, lookup_bytes)


@torch.jit.script_if_tracing
def _nearest_codes(vectors: Tensor, codebook: Tensor, lookup_bytes: int) -> Tensor:
    """Does the work of `nearest_codes`; scripted when exported, since tracing would fix the number of chunks.

    It takes the smallest distance of each block of codes, then the first block that has the smallest of all,
    then the first such code in it: `amin` runs at the speed of memory, `argmin` over all K does not.
    """
    block = 64
    padding = -codebook.shape[0] % block
    squares = codebook.square().sum(dim=1, keepdim=True)  # |z|^2 is the same for all codes and left out
    squares = torch.nn.functional.pad(squares, [0, 0, 0, padding], value=float("inf"))
    minus_twice = torch.nn.functional.pad(-2 * codebook, [0, 0, 0, padding])
    rows = max(1, lookup_bytes // (squares.shape[0] * 4))
    indices = torch.empty(vectors.shape[0], dtype=torch.int64, device=vectors.device)
    for start in range(0, vectors.shape[0], rows):
        chunk = vectors[start : start + rows]
        distances = torch.addmm(squares, minus_twice, chunk.t()).view(-1, block, chunk.shape[0])
        nearest_block = distances.amin(dim=1).argmin(dim=0)
        picks = nearest_block[None, None].expand(1, block, -1)
        in_block = distances.gather(0, picks)[0].argmin(dim=0)
        # Non-finite vectors match no code; clamp so that the index stays in range on a GPU.
        indices[start : start + rows] = (nearest_block * block + in_block).clamp(max=codebook.shape[0] - 1)
    return indices


def nearest_codes_by_blocks(vectors: Tensor, codebook: Tensor, block: int = 1024) -> Tensor:
    """Gives what `nearest_codes` gives, in a loop over codes: `torch.export` and ONNX know K, but not N.

    Args:
        vectors: (N, E) float32.
        codebook: (K, E) float32.
        block: codes per step; N x `block` distances are in memory at a time.

    Returns:
        (N,) int64 in [0, K); the first one where several codes are equally near.
    """
    least = torch.full_like(vectors[:, 0], float("inf"))
    indices = torch.zeros_like(least, dtype=torch.int64)
    for start in range(0, codebook.shape[0], block):
        codes = codebook[start : start + block]
        nearest, where = torch.addmm(codes.square().sum(dim=1), vectors, -2 * codes.t()).min(dim=1)
        indices = torch.where(nearest < least, where + start, indices)
        least = torch.minimum(nearest, least)
    return indices
