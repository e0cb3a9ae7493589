"""Estimates the peak memory of training before anything is allocated, with tensors that hold no data."""

import copy
import math
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bundle.losses.adversarial import hinge_discriminator_loss
from bundle.losses.objective import GeneratorObjective
from bundle.losses.stabilisers import r1_penalty
from bundle.losses.views import discriminator_views
from bundle.networks.vqgan import VQGAN, Reconstruction

MIB = 2**20
ADAM_MOMENTS = 2


class MemoryRow(NamedTuple):
    """One line of the estimate: what takes how many bytes."""

    what: str
    size: int


def estimate_training_memory(
    network: VQGAN,
    objective: GeneratorObjective,
    patch_size: Sequence[int],
    micro_batch_size: int,
    batch_size: int,
    half_precision: bool = False,
    gated: bool = True,
    r1_gamma: float = 0.0,
) -> list[MemoryRow]:
    """Peak memory of one training iteration on a device, by what takes it.

    The networks are copied to torch's meta device, where tensors have shapes but no data, and run through one
    iteration forward and backward; whatever is alive is counted, so that the peak is that of the tensors of a
    real iteration. Not counted: work space of libraries, the CUDA context, fragmentation.

    Args:
        network: the generator.
        objective: with its discriminators and LPIPS; terms of weight 0 cost nothing.
        patch_size: in voxels.
        micro_batch_size: patches at a time.
        batch_size: patches per iteration, which lie on the device together.
        half_precision: activations in bfloat16, and copies of the weights in it.
        gated: behind the gate; false is the warm-up, in which discriminators have weights only.
        r1_gamma: above 0, the R1 penalty's second derivative is part of it.

    Returns:
        Rows that sum up to the peak: weights, gradients and Adam's moments of each side, LPIPS, patches, and
        activations at the peak.
    """
    discriminators, perceptual = objective.discriminators, objective.perceptual
    shape = (min(micro_batch_size, batch_size), 1, *patch_size)
    voxels = math.prod(patch_size)
    rows = [
        MemoryRow("generator: weights, gradients, Adam", _trained_size(network)),
        MemoryRow(
            "discriminators: weights, gradients, Adam",
            _trained_size(discriminators) if gated else _size(discriminators),
        ),
        MemoryRow("LPIPS: weights", 0 if perceptual is None else _size(perceptual)),
        MemoryRow("patches of the batch", batch_size * voxels * 4),
        MemoryRow(
            "activations at their peak",
            _peak_of_activations(_twins(network, objective), shape, half_precision, gated, r1_gamma),
        ),
    ]
    if half_precision:
        copied = _size(network) + (_size(discriminators) if gated else 0)
        rows.append(MemoryRow("copies of weights in bfloat16", copied // 2))
    return rows


def memory_table(rows: Sequence[MemoryRow]) -> str:
    """The estimate as text, a line each and the sum, in MiB."""
    total = [MemoryRow("sum: peak of an iteration", sum(row.size for row in rows))]
    return "\n".join(f"{row.what:<44}{row.size / MIB:>10,.0f} MiB" for row in [*rows, *total])


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made in its context and are alive, on any device.

    Attributes:
        peak: most bytes that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._alive = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._known:
            self._known[key] = storage.nbytes()
            self._alive += storage.nbytes()
            self.peak = max(self.peak, self._alive)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._alive -= self._known.pop(key)


class _Float32Distance(nn.Module):
    """LPIPS as training runs it, but for its autocast guard, which knows no meta device."""

    def __init__(self, perceptual: nn.Module) -> None:
        super().__init__()
        self.lpips = perceptual.get_submodule("lpips")

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        return self.lpips(real.detach().float(), fake.float()).flatten()


def _twins(network: VQGAN, objective: GeneratorObjective) -> tuple[VQGAN, GeneratorObjective]:
    """Copies without data, gradients in place; the originals' data are not copied on the way."""
    memo: dict[int, Any] = {}
    for module in (network, objective):
        for tensor in [*module.parameters(), *module.buffers()]:
            twin = torch.empty_like(tensor, device="meta")
            is_parameter = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(twin, tensor.requires_grad) if is_parameter else twin
    twins = copy.deepcopy(network, memo), copy.deepcopy(objective, memo)
    if twins[1].perceptual is not None:
        twins[1].perceptual = _Float32Distance(twins[1].perceptual)
    return twins


def _peak_of_activations(
    twins: tuple[VQGAN, GeneratorObjective],
    shape: tuple[int, ...],
    half_precision: bool,
    gated: bool,
    r1_gamma: float,
) -> int:
    """Most bytes alive in an iteration beside weights, gradients and the batch."""
    network, objective = twins
    dtype = torch.bfloat16 if half_precision else torch.float32
    trained = [network.to(dtype), objective.discriminators.to(dtype)]
    for parameter in (parameter for part in trained for parameter in part.parameters()):
        parameter.grad = torch.empty_like(parameter)
    image = torch.empty(shape, dtype=dtype, device="meta")
    positions = torch.zeros(shape[0], 3, dtype=torch.int64, device="meta")
    with LiveBytes() as counter:
        reconstruction = _reconstruct(network, image)
        objective(image, reconstruction, positions, 1.0 if gated else 0.0)[0].backward()
        if gated:
            fake = reconstruction.image.detach()
            del reconstruction
            _discriminator_pass(objective, image, fake, positions, r1_gamma)
    return counter.peak


def _reconstruct(network: VQGAN, image: Tensor) -> Reconstruction:
    """The generator's pass; the codebook looks up in small chunks, which count for little."""
    latent = network.encode_latent(image)
    codes = latent + (latent.clone() - latent).detach()
    commitment_loss = nn.functional.mse_loss(latent.float(), codes.detach().float())
    return Reconstruction(network.decoder(codes), commitment_loss, codes.detach())


def _discriminator_pass(
    objective: GeneratorObjective, image: Tensor, fake: Tensor, positions: Tensor, r1_gamma: float
) -> None:
    objective.discriminators.requires_grad_(True)
    loss = torch.zeros((), device=image.device)
    for name, discriminator in objective.discriminators.items():
        for real_view, fake_view in zip(
            discriminator_views(image, positions, name),
            discriminator_views(fake, positions, name),
            strict=True,
        ):
            if r1_gamma > 0:
                real_view = real_view.clone().requires_grad_(True)
            real_logits, fake_logits = discriminator(real_view)[-1], discriminator(fake_view)[-1]
            loss = loss + hinge_discriminator_loss(real_logits, fake_logits)
            if r1_gamma > 0:
                loss = loss + r1_penalty(real_view, real_logits)
    if loss.requires_grad:
        loss.backward()


def _trained_size(network: nn.Module) -> int:
    """Weights with their gradients and moments, and buffers."""
    trained = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    return trained * (1 + ADAM_MOMENTS) + _size(network)


def _size(network: nn.Module) -> int:
    tensors = [*network.parameters(), *network.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
