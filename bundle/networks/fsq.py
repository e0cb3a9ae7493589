"""Finite scalar quantization: a codebook that cannot collapse, because it is a fixed grid.

Dimension letters: B batch, E embedding width, K codes, D grid axes, x y z latent cells.
"""

import math

import torch
from torch import Tensor, nn

from bundle.distributed.collectives import all_reduce
from bundle.networks.quantizer import CodeCounts, NetworkSettingError, Quantized, Quantizer

LEVELS = 4


class FSQ(Quantizer):
    """Rounds a projection of the latent to a grid of 4 levels per axis.

    A 1x1 convolution brings the latent to D = log4(K) channels, tanh bounds them, rounding with
    straight-through gradient quantizes them, and another 1x1 convolution brings them back. The grid is not
    learned: no code can die, there is no commitment term, and `update` only counts.
    Paper: Mentzer et al. 2023, arXiv:2309.15505, section 3 and appendix A.1.

    Args:
        num_embeddings: number of codes K, a power of 4 up to 4^8 = 65536.
        embedding_dim: width E of the latent.

    Raises:
        NetworkSettingError: if K is not a power of 4.
    """

    basis: Tensor

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        axes = round(math.log(num_embeddings, LEVELS))
        if LEVELS**axes != num_embeddings:
            raise NetworkSettingError(
                "`num_embeddings` must be a power of 4 with `quantizer` fsq (16384 = 4^7), "
                f"got {num_embeddings}"
            )
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.levels = LEVELS  # TorchScript reads attributes, but no constants of a Python module
        self.project_in = nn.Conv3d(embedding_dim, axes, 1)
        self.project_out = nn.Conv3d(axes, embedding_dim, 1)
        self.register_buffer("basis", LEVELS ** torch.arange(axes), persistent=False)
        self._pending: Tensor | None = None  # counts of this iteration's micro-batches

    def quantize(self, latent: Tensor) -> Tensor:
        """Turns a latent (B, E, x, y, z) of any float type into indices (B, x, y, z), int64."""
        if torch.jit.is_scripting():  # TorchScript cannot turn autocast off
            bounded = self._bound(latent)
        else:
            with torch.autocast(latent.device.type, enabled=False):
                bounded = self._bound(latent)
        return self._indices(bounded.round())

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """Turns indices (B, x, y, z) into the vectors that the decoder saw, (B, E, x, y, z) float32."""
        digits = indices[:, None] // self.basis[:, None, None, None] % self.levels
        rounded = digits.float() - self.levels // 2
        if torch.jit.is_scripting():
            codes = self._codes(rounded)
        else:
            with torch.autocast(indices.device.type, enabled=False):
                codes = self._codes(rounded)
        return codes

    @torch.jit.ignore  # training; TorchScript gets `quantize` and `indices_to_codes`
    def forward(self, latent: Tensor) -> Quantized:
        """Quantizes `latent` (B, E, x, y, z); in training mode also counts the codes for `update()`."""
        with torch.autocast(latent.device.type, enabled=False):
            bounded = self._bound(latent)
            rounded = bounded + (bounded.round() - bounded).detach()
            indices = self._indices(rounded.detach().round())
            if self.training:
                counts = torch.bincount(indices.flatten(), minlength=self.num_embeddings).float()
                self._pending = counts if self._pending is None else self._pending + counts
            return Quantized(self._codes(rounded), latent.new_zeros((), dtype=torch.float32), indices)

    def discard(self) -> None:
        """Forgets the counts since the last update: the iteration is skipped or repeated."""
        self._pending = self._counts = None

    @torch.no_grad()
    def update(self, restart: bool = True) -> None:
        """Adds up the counts of all micro-batches and ranks of this iteration; nothing is learned.

        Args:
            restart: has no effect, since a grid has no dead codes.
        """
        if self._pending is None:
            return
        all_reduce(self._pending)
        self._counts = CodeCounts(self._pending, self._pending.new_zeros(()))
        self._pending = None

    def _bound(self, latent: Tensor) -> Tensor:
        """Projects to (B, D, x, y, z), squashed so that rounding gives the 4 levels -2, -1, 0 and 1."""
        half_range = (self.levels - 1) * (1 + 1e-3) / 2
        shift = math.atanh(0.5 / half_range)
        return torch.tanh(self.project_in(latent.float()) + shift) * half_range - 0.5

    def _codes(self, rounded: Tensor) -> Tensor:
        return self.project_out(rounded / (self.levels // 2))

    def _indices(self, rounded: Tensor) -> Tensor:
        digits = rounded.long() + self.levels // 2
        return (digits * self.basis[:, None, None, None]).sum(dim=1)
