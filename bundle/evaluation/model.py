"""Reconstructs int16 volumes with a checkpoint, tile by tile; with emboli, only the tiles that they change.

Dimension letters: X Y Z voxels, x y z cells of the code map (x = X / stride, rounded up).
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from bundle.checkpoints.file import load_generator, read_checkpoint, read_settings
from bundle.checkpoints.trained_on import KINDS
from bundle.inferers.halo import tiles
from bundle.networks.fingerprint import fingerprint
from bundle.networks.vqgan import build_vqgan


class Coded(NamedTuple):
    """A volume, its codes and its reconstruction.

    Attributes:
        voxels: (X, Y, Z) int16 in HU.
        indices: (x, y, z) uint16.
        recon: (X, Y, Z) int16 in HU.
    """

    voxels: np.ndarray
    indices: np.ndarray
    recon: np.ndarray


class TrainedModel:
    """The generator of a checkpoint, with the window it was trained for.

    Volumes stay int16; one tile at a time becomes float32. Tiles have the network's own halo, so the result
    is that of the whole volume (see `HaloInferer`).

    Args:
        ckpt_path: a training checkpoint or an installed model.
        device: of the network.
        tile_size: edge of a tile's core in voxels, one number or three, multiples of the stride.
        progress: whether to show a bar.

    Attributes:
        settings: `network_settings` of the checkpoint.
        trained_on: `{"patients": hashes, "voxels": fingerprints}`, empty if the checkpoint does not say.
        sha256: fingerprint of the weights.
        recipe: how the weights were trained, and `data`, a hash of all volumes they have seen; empty if the
            checkpoint does not say.

    Raises:
        CheckpointError: if the file cannot be used.
        ValueError: if `tile_size` is no multiple of the stride, or smaller than two strides.
    """

    def __init__(
        self,
        ckpt_path: str | Path,
        device: torch.device | str = "cpu",
        tile_size: int | Sequence[int] = 128,
        progress: bool = False,
    ) -> None:
        content = read_checkpoint(ckpt_path)
        self.settings: dict[str, Any] = read_settings(ckpt_path)
        names = inspect.signature(build_vqgan).parameters
        self.network = build_vqgan(**{name: self.settings[name] for name in names}).eval()
        load_generator(self.network, ckpt_path, content)
        self.sha256 = fingerprint(self.network)
        self.network.to(device)
        self.device = torch.device(device)
        told = content.get("trained_on", {})
        self.trained_on = {kind: set(told.get(kind, ())) for kind in KINDS}
        self.recipe: dict[str, Any] = dict(content.get("recipe", {}))
        if self.recipe:
            voxels = " ".join(sorted(self.trained_on["voxels"]))
            self.recipe["data"] = hashlib.sha256(voxels.encode()).hexdigest()[:16]
        self.stride, self.halo = self.network.stride, self.network.halo
        self.tile_size = [tile_size] * 3 if isinstance(tile_size, int) else list(tile_size)
        if any(side % self.stride or side < 2 * self.stride for side in self.tile_size):
            raise ValueError(
                f"`tile_size` must be a multiple of {self.stride} and at least {2 * self.stride}, "
                f"got {tile_size}; give voxels per axis"
            )
        self.progress = progress

    @torch.no_grad()
    def reconstruct(self, voxels: np.ndarray, alike: Coded | None = None) -> Coded:
        """Encodes and decodes a volume.

        Args:
            voxels: (X, Y, Z) int16 in HU, RAS axes.
            alike: a similar volume that is already reconstructed; equal tiles are taken from it, which gives
                the same result in less time.
        """
        cells = [-(-size // self.stride) for size in voxels.shape]
        indices = np.empty(cells, np.uint16) if alike is None else alike.indices.copy()
        recon = np.empty(voxels.shape, np.int16) if alike is None else alike.recon.copy()
        core = [side // self.stride for side in self.tile_size]
        every = list(tiles(cells, core, self.halo // self.stride))
        with tqdm(
            total=2 * len(every), unit="tile", desc="tiles", disable=not self.progress, leave=False
        ) as bar:
            for tile in every:
                window = tuple(slice(s.start * self.stride, s.stop * self.stride) for s in tile.window)
                if alike is None or not np.array_equal(voxels[window], alike.voxels[window]):
                    indices[tile.core] = self._encode(voxels[window])[tile.crop]
                bar.update()
            for tile in every:
                if alike is None or not np.array_equal(indices[tile.window], alike.indices[tile.window]):
                    self._decode_into(recon, indices, tile)
                bar.update()
        return Coded(voxels, indices, recon)

    def _encode(self, hu: np.ndarray) -> np.ndarray:
        missing = [(0, -size % self.stride) for size in hu.shape]
        image = torch.from_numpy(np.pad(hu, missing, mode="edge").astype(np.float32)).to(self.device)
        scaled = image.sub_(self._centre_hu).div_(self._half_width_hu).clamp_(-1, 1)
        return self.network.encode(scaled[None, None])[0].cpu().numpy().astype(np.uint16)

    def _decode_into(self, recon: np.ndarray, indices: np.ndarray, tile: Any) -> None:
        window = torch.from_numpy(indices[tile.window].astype(np.int64)).to(self.device)
        image = self.network.decode(window[None])[0, 0].float().clamp_(-1, 1)
        hu = image.mul_(self._half_width_hu).add_(self._centre_hu).round_().to(torch.int16).cpu().numpy()
        crop = tuple(slice(s.start * self.stride, s.stop * self.stride) for s in tile.crop)
        target = recon[tuple(slice(s.start * self.stride, s.stop * self.stride) for s in tile.core)]
        target[...] = hu[crop][tuple(slice(0, size) for size in target.shape)]

    @property
    def _centre_hu(self) -> float:
        return (self.settings["hu_min"] + self.settings["hu_max"]) / 2

    @property
    def _half_width_hu(self) -> float:
        return (self.settings["hu_max"] - self.settings["hu_min"]) / 2
