"""Encodes and decodes a volume in slabs or tiles, with exactly the result of one pass over the whole.

Dimension letters: B batch, X Y Z voxels, x y z latent cells. Tiles are counted in cells.
"""

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from monai.inferers import Inferer
from monai.utils import ensure_tuple_rep
from torch import Tensor
from tqdm import tqdm

from bundle.inferers.freed_memory import freed_memory_kept
from bundle.inferers.tile_size import (
    budget_bytes,
    choose_slab_slices,
    choose_tile_size,
    halved,
    is_out_of_memory,
)
from bundle.run.rules import STRIDE

logger = logging.getLogger(__name__)

DEFAULT_BYTES_PER_VOXEL = 256


class TilingError(ValueError):
    """A tile size or halo that breaks its rule; the message names it."""


class Tile(NamedTuple):
    """One tile, in cells per axis: the network runs on `window`; `crop` cuts `core` out of the result."""

    core: tuple[slice, ...]
    window: tuple[slice, ...]
    crop: tuple[slice, ...]


def tiles(shape: Sequence[int], core_size: Sequence[int], halo: int) -> Iterator[Tile]:
    """Covers `shape` exactly once by cores; halos end at the volume's border, where the network pads itself.

    Args:
        shape: of the volume, in cells.
        core_size: of a tile without halo, in cells.
        halo: on each inner side, in cells.
    """
    axes = []
    for size, core in zip(shape, core_size, strict=True):
        spans = []
        for start in range(0, size, core):
            stop = min(start + core, size)
            first, last = max(0, start - halo), min(size, stop + halo)
            spans.append((slice(start, stop), slice(first, last), slice(start - first, stop - first)))
        axes.append(spans)
    for tile in itertools.product(*axes):
        yield Tile(*(tuple(part) for part in zip(*tile, strict=True)))


class _Pass(NamedTuple):
    """One sweep over a volume: what runs on a tile or a slab, and the steps between arrays and cells."""

    name: str
    run_tile: Callable[[Tensor], Tensor]
    begin_slabs: Callable[[], Any] | None  # see `bundle.networks.slabs.Slabs`; None = it runs in tiles only
    source_step: int  # positions per cell in the array that is read
    target_step: int  # and in the one that is written
    stride: int  # voxels per cell
    halo: int  # voxels
    device: torch.device  # of the network
    bytes_per_voxel: int  # of activations, for `tile_size: auto`


class HaloInferer(Inferer):
    """Runs a network over a volume in slabs, or in tiles with a halo; no blending, no averaging.

    A network with `encode` and `decode` (VQGAN) is run in two passes. The first turns the image into one map
    of indices of the whole volume, the second turns that map into voxels, so that codes never depend on the
    tiling.

    Slabs of slices along the first axis need no halo (`bundle.networks.slabs`); VQGAN is run in them unless
    tiles or a halo are asked for, or too little memory is left. A volume of one slab is run in one pass.
    Tiles go through the network with a halo, which is cropped from the result. A network that has only
    `forward` is run in one pass, in tiles with twice the halo. Slabs, and tiles with at least the network's
    own halo, equal the whole (up to float32 rounding). A smaller halo is faster than the full one and leaves
    seams (docs/tiling.md says how large). The volume may lie on another device than the network: only slabs
    or tiles travel.

    Args:
        tile_size: core of a tile, without halo, in voxels: one number or one per axis, multiples of the
            stride; `auto` or None takes slabs or tiles that fit into free memory. If memory runs out, they
            are halved and the log says so.
        halo: of tiles, in voxels, a multiple of the stride; None = `network.halo`.
        progress: whether to show a bar with voxels per second and time left.

    Raises:
        TilingError: if a tile or halo breaks its rule; rules of a network are checked by `check`.
    """

    def __init__(
        self,
        tile_size: Sequence[int] | int | str | None = 128,
        halo: int | None = None,
        progress: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(tile_size, str) and tile_size != "auto":
            raise TilingError(f"`tile_size` must be voxels or 'auto', got {tile_size!r}")
        self.tile_size = None if tile_size in (None, "auto") else tuple(ensure_tuple_rep(tile_size, 3))
        self.halo = halo
        self.progress = progress

    def check(self, network: Any) -> None:
        """Tells whether tiles and halo fit the stride of `network`, before a volume is read.

        Raises:
            TilingError: naming the argument, its value and the rule.
        """
        self._rules(network)

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Reconstructs a volume (B, 1, X, Y, Z) in [-1, 1], on the volume's device.

        Sizes need not be multiples of the stride: far faces are padded with their edge values and cropped.
        """
        image = inputs.as_subclass(Tensor)  # a MetaTensor would track every tile
        if hasattr(network, "encode") and hasattr(network, "decode"):
            output = self.decode(self.encode(image, network), network)
        else:
            stride, halo = self._rules(network)
            padded = _pad_to_multiple(image, stride)
            output = torch.empty(padded.shape, dtype=torch.float32, device=image.device)
            run_tile = lambda tile: network(tile, *args, **kwargs)  # noqa: E731
            self._run(self._make_pass("forward", network, run_tile, stride, stride, 2 * halo), padded, output)
        return output[_inside(image.shape[2:])]

    @torch.no_grad()
    def encode(self, image: Tensor, network: Any) -> Tensor:
        """Encodes a volume (B, 1, X, Y, Z) to indices (B, x, y, z), int64; x = X / stride, rounded up."""
        return self._encode(image, network, "encode", (), torch.int64)

    @torch.no_grad()
    def encode_latent(self, image: Tensor, network: Any) -> Tensor:
        """Encodes a volume (B, 1, X, Y, Z) to the latent (B, E, x, y, z), float32, before quantization."""
        width = network.quantizer.embedding_dim
        return self._encode(image, network, "encode_latent", (width,), torch.float32)

    def _encode(
        self, image: Tensor, network: Any, method: str, channels: tuple[int, ...], dtype: torch.dtype
    ) -> Tensor:
        stride, halo = self._rules(network)
        padded = _pad_to_multiple(image.as_subclass(Tensor), stride)
        cells = [size // stride for size in padded.shape[2:]]
        target = torch.empty((padded.shape[0], *channels, *cells), dtype=dtype, device=image.device)
        run_tile = getattr(network, method)
        self._run(self._make_pass(method, network, run_tile, stride, 1, halo), padded, target)
        return target

    @torch.no_grad()
    def decode(self, indices: Tensor, network: Any) -> Tensor:
        """Decodes indices (B, x, y, z) to a volume (B, 1, X, Y, Z) float32 with X = stride x."""
        stride, halo = self._rules(network)
        voxels = [size * stride for size in indices.shape[1:]]
        image = torch.empty((indices.shape[0], 1, *voxels), dtype=torch.float32, device=indices.device)
        self._run(self._make_pass("decode", network, network.decode, 1, stride, halo), indices, image)
        return image

    def _rules(self, network: Any) -> tuple[int, int]:
        """Returns stride and halo in voxels, checked."""
        stride = getattr(network, "stride", STRIDE)
        halo = getattr(network, "halo", None) if self.halo is None else self.halo
        if halo is None:
            raise TilingError(
                "`halo` must be given for a network that does not know its own, got None; 44 is always enough"
            )
        if halo < 0 or halo % stride:
            raise TilingError(
                f"`halo` must be a multiple of the stride {stride} and at least 0, got {halo} voxels"
            )
        if self.tile_size and any(size < 2 * stride or size % stride for size in self.tile_size):
            raise TilingError(
                f"`tile_size` must be a multiple of the stride {stride} and at least {2 * stride}, "
                f"got {self.tile_size} voxels"
            )
        return stride, halo

    @staticmethod
    def _make_pass(
        name: str, network: Any, run_tile: Callable, source_step: int, target_step: int, halo: int
    ) -> _Pass:
        parameter = next(network.parameters(), None) if hasattr(network, "parameters") else None
        device = torch.device("cpu") if parameter is None else parameter.device
        cost = getattr(network, "bytes_per_voxel", DEFAULT_BYTES_PER_VOXEL)
        begin_slabs, stride = getattr(network, f"{name}_in_slabs", None), max(source_step, target_step)
        return _Pass(name, run_tile, begin_slabs, source_step, target_step, stride, halo, device, cost)

    def _run(self, sweep: _Pass, source: Tensor, target: Tensor) -> None:
        """Fills `target` (..., X, Y, Z) from `source`."""
        with freed_memory_kept(sweep.device):
            self._run_slabs_or_tiles(sweep, source, target)

    def _run_slabs_or_tiles(self, sweep: _Pass, source: Tensor, target: Tensor) -> None:
        """Fills `target` in slabs if they may be used and fit into memory."""
        shape = [size // sweep.source_step * sweep.stride for size in source.shape[-3:]]
        if self.tile_size is not None:
            self._run_tiles(sweep, source, target, shape, self.tile_size)
            return
        fitting = budget_bytes(sweep.device) // (sweep.bytes_per_voxel * source.shape[0])
        if self.halo is None and sweep.begin_slabs is not None:
            slices = choose_slab_slices(shape, sweep.stride, fitting, sweep.device)
            if self._run_slabs(sweep, source, target, shape, slices):
                return
            if slices:  # memory has run out: a tile must be smaller than the thinnest slab
                fitting = min(fitting, sweep.stride * math.prod(shape[1:]) // 2)
        tile_size = choose_tile_size(shape, sweep.halo, sweep.stride, fitting)
        logger.info("%s: tiles of %s voxels with a halo of %d", sweep.name, tile_size, sweep.halo)
        self._run_tiles(sweep, source, target, shape, tile_size)

    def _run_slabs(
        self, sweep: _Pass, source: Tensor, target: Tensor, shape: Sequence[int], slices: int
    ) -> bool:
        """Fills `target` slab by slab, halving slabs if memory runs out; tells whether any slab fitted."""
        while slices >= sweep.stride:
            logger.info("%s: slabs of %d x %d x %d voxels", sweep.name, slices, *shape[1:])
            try:
                self._sweep_slabs(sweep, source, target, shape, slices)
                return True
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            logger.warning("%s: out of memory with slabs of %d slices", sweep.name, slices)
            slices = slices // 2 // sweep.stride * sweep.stride
            _empty_cache(sweep.device)
        return False

    def _run_tiles(
        self, sweep: _Pass, source: Tensor, target: Tensor, shape: Sequence[int], tile_size: Sequence[int]
    ) -> None:
        """Fills `target` tile by tile, halving tiles if memory runs out."""
        while True:
            try:
                return self._sweep_tiles(sweep, source, target, shape, tile_size)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                smaller = halved(tile_size, shape, sweep.stride)
                if not is_out_of_memory(error) or smaller is None:
                    raise
            logger.warning(
                "%s: out of memory with tiles of %s voxels; going on with %s", sweep.name, tile_size, smaller
            )
            tile_size = smaller
            _empty_cache(sweep.device)

    def _sweep_slabs(
        self, sweep: _Pass, source: Tensor, target: Tensor, shape: Sequence[int], slices: int
    ) -> None:
        assert sweep.begin_slabs is not None
        if slices >= shape[0]:  # the whole volume at once, without slices to keep
            self._sweep_tiles(sweep, source, target, shape, shape)
            return
        run, done = sweep.begin_slabs(), 0
        slabs = source.split(slices // sweep.stride * sweep.source_step, dim=-3)
        with self._bar(sweep, shape) as bar:
            for number, slab in enumerate(slabs, start=1):
                result = run(slab.to(sweep.device), is_last=number == len(slabs))
                if result is not None:
                    n_new = result.shape[-3]
                    target[..., done : done + n_new, :, :] = result.to(target)
                    done += n_new
                    bar.update(n_new * sweep.stride // sweep.target_step * math.prod(shape[1:]))

    def _sweep_tiles(
        self, sweep: _Pass, source: Tensor, target: Tensor, shape: Sequence[int], tile_size: Sequence[int]
    ) -> None:
        cells = [size // sweep.stride for size in shape]
        core = [size // sweep.stride for size in tile_size]
        with self._bar(sweep, shape) as bar:
            for tile in tiles(cells, core, sweep.halo // sweep.stride):
                result = sweep.run_tile(source[_scaled(tile.window, sweep.source_step)].to(sweep.device))
                target[_scaled(tile.core, sweep.target_step)] = result[
                    _scaled(tile.crop, sweep.target_step)
                ].to(target)
                bar.update(math.prod((span.stop - span.start) * sweep.stride for span in tile.core))

    def _bar(self, sweep: _Pass, shape: Sequence[int]) -> tqdm:
        is_hidden = None if self.progress else True  # None = hidden where there is no terminal
        return tqdm(total=math.prod(shape), unit="voxel", unit_scale=True, desc=sweep.name, disable=is_hidden)


def _empty_cache(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _scaled(spans: Sequence[slice], step: int) -> tuple:
    return (..., *(slice(span.start * step, span.stop * step) for span in spans))


def _inside(size: Sequence[int]) -> tuple:
    return (..., *(slice(0, extent) for extent in size))


def _pad_to_multiple(image: Tensor, stride: int) -> Tensor:
    missing = [-size % stride for size in image.shape[2:]]
    if not any(missing):
        return image
    pairs = itertools.chain.from_iterable((0, extent) for extent in reversed(missing))
    return torch.nn.functional.pad(image, tuple(pairs), mode="replicate")
