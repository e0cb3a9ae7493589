"""Quantizes latent vectors with an EMA codebook (moving averages) whose codes stay in use.

Dimension letters: B batch, E embedding width, K codes, N latent vectors, x y z latent cells.
"""

import abc
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bundle.distributed.collectives import all_reduce, counts_per_rank, global_rows
from bundle.networks.nearest_codes import nearest_codes

_TINY = 1e-12


class NetworkSettingError(ValueError):
    """A preset, quantizer or number of codes that does not exist; the message names what does."""


class Quantized(NamedTuple):
    """Holds codes (B, E, x, y, z) with straight-through gradient, commitment loss, indices (B, x, y, z)."""

    codes: Tensor
    commitment_loss: Tensor
    indices: Tensor


class CodeCounts(NamedTuple):
    """Tells how often an update saw each code, (K,) float32, and how many codes it restarted, a scalar."""

    seen: Tensor
    restarts: Tensor


class Quantizer(nn.Module, abc.ABC):
    """Defines what the generator, its training and its users ask of a quantizer.

    `forward` collects, micro-batch by micro-batch; `update` ends the iteration, `discard` drops it.

    Attributes:
        num_embeddings: number of codes K.
        embedding_dim: width E of the latent and of the codes.
    """

    num_embeddings: int
    embedding_dim: int
    _counts: CodeCounts | None = None

    def counts(self) -> CodeCounts | None:
        """Returns what the last update counted, over all micro-batches and ranks.

        None before the first update and after `discard`.
        """
        return self._counts

    def prepare(self, first_latent: Callable[[], Tensor]) -> None:
        """Gets the quantizer ready for an iteration of training, and is called before every one.

        Args:
            first_latent: gives the latent (B, E, x, y, z) of this rank's whole batch; called only if it is
                needed, and then on all ranks.
        """

    @abc.abstractmethod
    def forward(self, latent: Tensor) -> Quantized:
        """Quantizes `latent` (B, E, x, y, z); in training mode also collects for `update`."""

    @abc.abstractmethod
    def update(self, restart: bool = True) -> None:
        """Ends an iteration: learns from what `forward` collected on all ranks, and counts the codes.

        Args:
            restart: whether dead codes may restart.
        """

    @abc.abstractmethod
    def discard(self) -> None:
        """Forgets what `forward` collected since the last update: the iteration is skipped or repeated."""

    @abc.abstractmethod
    def quantize(self, latent: Tensor) -> Tensor:
        """Turns a latent (B, E, x, y, z) of any float type into indices (B, x, y, z), int64 in [0, K)."""

    @abc.abstractmethod
    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """Turns indices (B, x, y, z) into the vectors that the decoder sees, (B, E, x, y, z) float32."""


class EMACodebook(Quantizer):
    """Keeps a codebook that follows the encoder by exponential moving averages and restarts dead codes.

    `forward` only collects. One `update()` per iteration takes the counts, sums and vectors of all
    micro-batches and ranks together, so it equals the update of the full batch. The codebook is a buffer. Its
    first values are vectors of the first batch; a second buffer says whether it has them, so a resumed run
    never starts it again. A code is dead when its average count falls below `restart_threshold` times the
    mean. It restarts from a random vector of the batch with fresh averages; at most `restart_share` of all
    codes do so in one update.
    Papers: van den Oord et al. 2017, arXiv:1711.00937, appendix A.1; restarts: Dhariwal et al. 2020,
    arXiv:2005.00341 (deviations: the threshold is relative to N / K, averages are reset too, and the random
    choice depends on the number of the update, so that it is the same on all ranks and after a resume).

    Args:
        num_embeddings: number of codes K.
        embedding_dim: width E.
        decay: of the moving averages, per update. Update n uses at most (1 + n) / (10 + n), because at first
            the codes have to follow an encoder that changes fast.
        restart_threshold: share of the mean count below which a code is dead.
        restart_share: at most this share of K restarts in one update.
        lookup_bytes: see `nearest_codes`.
    """

    # TorchScript would compile this property, and the training code behind it.
    __jit_unused_properties__ = ["is_initialized"]
    embedding: Tensor
    cluster_size: Tensor
    cluster_sum: Tensor
    initialized: Tensor
    updates: Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        decay: float = 0.99,
        restart_threshold: float = 0.1,
        restart_share: float = 1 / 16,
        lookup_bytes: int | None = None,
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.decay, self.restart_threshold = decay, restart_threshold
        self.restart_budget = max(1, int(num_embeddings * restart_share))
        self.lookup_bytes = lookup_bytes
        self.register_buffer("embedding", torch.randn(num_embeddings, embedding_dim))
        self.register_buffer("cluster_size", torch.zeros(num_embeddings))
        self.register_buffer("cluster_sum", torch.zeros(num_embeddings, embedding_dim))
        self.register_buffer("initialized", torch.tensor(False))
        self.register_buffer("updates", torch.tensor(0))
        # Copies on the host, so that reading them does not wait for the device.
        self._knows_initialized = False
        self._known_updates: int | None = None
        self.register_load_state_dict_post_hook(lambda module, _: module._forget())
        # Vectors and indices of this iteration's micro-batches.
        self._pending: list[tuple[Tensor, Tensor]] = []

    def _forget(self) -> None:
        self._knows_initialized = False
        self._known_updates = None
        self._pending.clear()

    @property
    def is_initialized(self) -> bool:
        """Tells whether the codes come from data or from a checkpoint."""
        self._knows_initialized = self._knows_initialized or bool(self.initialized)
        return self._knows_initialized

    def quantize(self, latent: Tensor) -> Tensor:
        """Turns a latent (B, E, x, y, z) of any float type into indices (B, x, y, z), int64."""
        vectors = self._vectors(latent)
        if torch.jit.is_scripting():  # TorchScript cannot turn autocast off
            indices = nearest_codes(vectors, self.embedding, self.lookup_bytes)
        else:
            with torch.autocast(latent.device.type, enabled=False):
                indices = nearest_codes(vectors, self.embedding, self.lookup_bytes)
        return indices.view_as(latent[:, 0])

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """Turns indices (B, x, y, z) into the vectors that the decoder saw, (B, E, x, y, z) float32."""
        return nn.functional.embedding(indices, self.embedding).movedim(-1, 1).contiguous()

    @torch.jit.ignore  # training; TorchScript gets `quantize` and `indices_to_codes`
    def forward(self, latent: Tensor) -> Quantized:
        """Quantizes `latent` (B, E, x, y, z); in training mode also collects it for `update()`."""
        with torch.autocast(latent.device.type, enabled=False):
            if self.training and not self.is_initialized:
                self.initialize(latent)
            latent = latent.float()
            indices = self.quantize(latent.detach())
            if self.training:
                self._pending.append((self._vectors(latent.detach()), indices.flatten()))
            codes = self.indices_to_codes(indices)
            commitment_loss = nn.functional.mse_loss(latent, codes)
            codes = latent + (codes - latent).detach()
        return Quantized(codes, commitment_loss, indices)

    def prepare(self, first_latent: Callable[[], Tensor]) -> None:
        """Takes the first codes from the whole first batch, not from its first micro-batch."""
        if not self.is_initialized:
            self.initialize(first_latent())

    @torch.no_grad()
    def initialize(self, latent: Tensor) -> None:
        """Takes the first codes from data: random vectors of `latent` (B, E, x, y, z), of all ranks together.

        If there are fewer vectors than codes, vectors are repeated with noise of 1 % of their spread. If a
        picked vector is not finite, nothing is taken, and the next batch is tried.
        """
        vectors = self._vectors(latent)
        total = sum(counts_per_rank(vectors))
        generator = torch.Generator().manual_seed(0)
        picks = torch.cat(
            [torch.randperm(total, generator=generator) for _ in range(-(-self.num_embeddings // total))]
        )[: self.num_embeddings]
        codes = global_rows(vectors, picks)
        if not bool(codes.isfinite().all()):  # the same codes, and so the same answer, on all ranks
            return
        noise = torch.randn(codes.shape, generator=generator).to(codes) * codes.std(dim=0) * 0.01
        noise[:total] = 0
        self.embedding.copy_(codes + noise)
        self.cluster_size.fill_(total / self.num_embeddings)
        self.cluster_sum.copy_(self.embedding * self.cluster_size[:, None])
        self.initialized.fill_(True)

    def discard(self) -> None:
        """Forgets what `forward` collected since the last update: the iteration is skipped or repeated."""
        self._pending.clear()
        self._counts = None

    @torch.no_grad()
    def update(self, restart: bool = True) -> None:
        """Makes one EMA step from everything that `forward` has collected; then dead codes restart.

        Args:
            restart: false keeps dead codes as they are.
        """
        if not self._pending:
            return
        vectors = torch.cat([pending[0] for pending in self._pending])
        indices = torch.cat([pending[1] for pending in self._pending])
        self._pending.clear()
        counts = torch.bincount(indices, minlength=self.num_embeddings).float()
        sums = torch.zeros_like(self.cluster_sum).index_add_(0, indices, vectors)
        all_reduce(counts)
        all_reduce(sums)
        number = int(self.updates) if self._known_updates is None else self._known_updates
        step = 1 - min(self.decay, (1 + number) / (10 + number))
        self.cluster_size.lerp_(counts, step)
        self.cluster_sum.lerp_(sums, step)
        means = self.cluster_sum / self.cluster_size.clamp_min(_TINY)[:, None]
        self.embedding.copy_(torch.where(self.cluster_size[:, None] > _TINY, means, self.embedding))
        restarts = self._restart_dead_codes(vectors, number) if restart else counts.new_zeros(())
        self._counts = CodeCounts(counts, restarts)
        self.updates += 1
        self._known_updates = number + 1

    def _restart_dead_codes(self, vectors: Tensor, number: int) -> Tensor:
        total = sum(counts_per_rank(vectors))
        budget = min(self.restart_budget, total)
        mean_size = self.cluster_size.mean()
        sizes, codes = self.cluster_size.topk(budget, largest=False)
        generator = torch.Generator().manual_seed(number + 1)
        rows = global_rows(vectors, torch.randperm(total, generator=generator)[:budget])
        dead = sizes < self.restart_threshold * mean_size
        # The number of rows is fixed and a mask chooses, so that no count has to come back from the device.
        rows = torch.where(dead[:, None], rows, self.embedding[codes])
        sizes = torch.where(dead, mean_size, sizes)
        self.embedding[codes] = rows
        self.cluster_sum[codes] = torch.where(dead[:, None], rows * sizes[:, None], self.cluster_sum[codes])
        self.cluster_size[codes] = sizes
        return dead.sum()

    @staticmethod
    def _vectors(latent: Tensor) -> Tensor:
        """Turns (B, E, x, y, z) into (N, E) float32."""
        return latent.float().movedim(1, -1).reshape(-1, latent.shape[1])
