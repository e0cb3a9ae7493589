"""Encodes and decodes a volume tile by tile, with exactly the result of one pass over the whole.

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

from bundle.inferers.tile_size import budget_bytes, choose_tile_size, halved, is_out_of_memory
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
    """One sweep over a volume: the function that runs on a tile, and the steps between arrays and cells."""

    name: str
    run_tile: Callable[[Tensor], Tensor]
    source_step: int  # positions per cell in the array that is read
    target_step: int  # and in the one that is written
    stride: int  # voxels per cell
    halo: int  # voxels
    device: torch.device  # of the network
    bytes_per_voxel: int  # of activations, for `tile_size: auto`


class HaloInferer(Inferer):
    """Runs a network over a volume in tiles with a halo, crops and stitches; no blending, no averaging.

    A network with `encode` and `decode` (VQGAN) is run in two passes, each with its own halo. The first turns
    all tiles into one index map of the whole volume, the second turns tiles of that map into voxels, so that
    codes never depend on the tiling. A network that has only `forward` is run in one pass with twice the
    halo. With at least the network's own halo, tiles equal the whole (up to float32 rounding). A smaller halo
    is faster and leaves seams (docs/tiling.md says how large). The volume may lie on another device than the
    network: only tiles travel.

    Args:
        tile_size: core of a tile, without halo, in voxels: one number or one per axis, multiples of the
            stride; `auto` or None takes what free memory allows. If memory runs out, tiles are halved and the
            log says so.
        halo: in voxels, a multiple of the stride; None = `network.halo`.
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
        run_tile = lambda tile: network.encode(tile).unsqueeze(1)  # noqa: E731
        return self._encode(image, network, run_tile, 1, torch.int64).squeeze(1)

    @torch.no_grad()
    def encode_latent(self, image: Tensor, network: Any) -> Tensor:
        """Encodes a volume (B, 1, X, Y, Z) to the latent (B, E, x, y, z), float32, before quantization."""
        width = network.quantizer.embedding_dim
        return self._encode(image, network, network.encode_latent, width, torch.float32)

    def _encode(
        self, image: Tensor, network: Any, run_tile: Callable, channels: int, dtype: torch.dtype
    ) -> Tensor:
        stride, halo = self._rules(network)
        padded = _pad_to_multiple(image.as_subclass(Tensor), stride)
        cells = [size // stride for size in padded.shape[2:]]
        target = torch.empty((padded.shape[0], channels, *cells), dtype=dtype, device=image.device)
        self._run(self._make_pass("encode", network, run_tile, stride, 1, halo), padded, target)
        return target

    @torch.no_grad()
    def decode(self, indices: Tensor, network: Any) -> Tensor:
        """Decodes indices (B, x, y, z) to a volume (B, 1, X, Y, Z) float32 with X = stride x."""
        stride, halo = self._rules(network)
        voxels = [size * stride for size in indices.shape[1:]]
        image = torch.empty((indices.shape[0], 1, *voxels), dtype=torch.float32, device=indices.device)
        run_tile = lambda tile: network.decode(tile.squeeze(1))  # noqa: E731
        self._run(self._make_pass("decode", network, run_tile, 1, stride, halo), indices.unsqueeze(1), image)
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
        return _Pass(
            name, run_tile, source_step, target_step, max(source_step, target_step), halo, device, cost
        )

    def _run(self, sweep: _Pass, source: Tensor, target: Tensor) -> None:
        """Fills `target` (B, 1, ...) from `source` (B, 1, ...); halves tiles if memory runs out."""
        shape = [size // sweep.source_step * sweep.stride for size in source.shape[2:]]
        tile_size = self.tile_size
        if tile_size is None:
            fitting = budget_bytes(sweep.device) // (sweep.bytes_per_voxel * source.shape[0])
            tile_size = choose_tile_size(shape, sweep.halo, sweep.stride, fitting)
            logger.info("%s: tiles of %s voxels with a halo of %d", sweep.name, tile_size, sweep.halo)
        while True:
            try:
                return self._sweep(sweep, source, target, shape, tile_size)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                smaller = halved(tile_size, shape, sweep.stride)
                if not is_out_of_memory(error) or smaller is None:
                    raise
            logger.warning(
                "%s: out of memory with tiles of %s voxels; going on with %s", sweep.name, tile_size, smaller
            )
            tile_size = smaller
            if sweep.device.type == "cuda":
                torch.cuda.empty_cache()

    def _sweep(
        self, sweep: _Pass, source: Tensor, target: Tensor, shape: Sequence[int], tile_size: Sequence[int]
    ) -> None:
        cells = [size // sweep.stride for size in shape]
        core = [size // sweep.stride for size in tile_size]
        with tqdm(
            total=math.prod(shape),
            unit="voxel",
            unit_scale=True,
            desc=sweep.name,
            disable=None if self.progress else True,
        ) as bar:  # fmt: skip
            for tile in tiles(cells, core, sweep.halo // sweep.stride):
                result = sweep.run_tile(source[_scaled(tile.window, sweep.source_step)].to(sweep.device))
                target[_scaled(tile.core, sweep.target_step)] = result[
                    _scaled(tile.crop, sweep.target_step)
                ].to(target)
                bar.update(math.prod((span.stop - span.start) * sweep.stride for span in tile.core))


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
