"""Reads the patch store as data sets: endless reproducible patches, and whole volumes for validation."""

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import PathLike
from monai.transforms import Compose
from monai.utils import ensure_tuple_rep
from torch.utils.data import Dataset, Sampler

from bundle.data.patches.placing import PatchPlacer, grid_starts, warn_of_missing_contrast
from bundle.data.store.body import Outside
from bundle.data.store.store import PatchStore, StoredVolume
from bundle.distributed.ranks import rank, world_size
from bundle.distributed.shares import batch_share
from bundle.run.names import patient_key
from bundle.run.rules import check

logger = logging.getLogger(__name__)

Transform = Callable[[dict[str, Any]], Any]


class StoredDataset(Dataset):
    """Base of both data sets, which share the patch store. Construction reads and writes nothing.

    Args:
        data: items with `image`, the path of a volume; other entries are ignored (MONAI Label adds `label`).
        cache_dir: folder of the patch store.
        hu_min: lower end of the HU window, to count the voxels that it clips.
        hu_max: upper end of the window.
        transform: applied to each item, usually `ScaleHUWindowd`; None = items stay in HU.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        cache_dir: PathLike,
        hu_min: float = -1000,
        hu_max: float = 1000,
        transform: Transform | None = None,
    ) -> None:
        self.data = list(data)
        self.store = PatchStore(cache_dir)
        self.hu_min, self.hu_max = hu_min, hu_max
        self.transform = transform
        self._volumes: list[StoredVolume] | None = None

    def __len__(self) -> int:
        return len(self.data)

    @property
    def volumes(self) -> list[StoredVolume]:
        """Returns the stored volumes, prepared on first use."""
        if self._volumes is None:
            self.prepare()
        return self._volumes or []

    def prepare(self) -> None:
        """Fills the store, and logs how many voxels the window will clip. Call it before workers start.

        Raises:
            ValueError: if there are no data.
            VolumeError: see `bundle.data.volumes.reading.read_volume`.
            StoreError: if the cache folder cannot be used.
        """
        if not self.data:
            raise ValueError("`data` must hold at least one volume, got none; check `dataset_dir`")
        self._volumes = self.store.prepare(self.data, window=(self.hu_min, self.hu_max))
        for volume in self._volumes:
            if volume.doubt:
                logger.warning("%s: %s", volume.case["image"], volume.doubt)
        counts = np.array([volume.outside_window(self.hu_min, self.hu_max) for volume in self._volumes])
        n_voxels = sum(math.prod(volume.shape) for volume in self._volumes)
        outside = Outside(*counts.sum(axis=0).tolist())
        logger.info("%s will be clipped", outside.told(n_voxels, self.hu_min, self.hu_max))

    def trained_on(self) -> dict[str, list[str]]:
        """Returns anonymous keys of the patients and volumes in these data, for checkpoints trained on them.

        Returns:
            `patients`: salted hashes, see `bundle.data.cases.patients.patient_key`; `voxels`: fingerprints,
            see `bundle.data.volumes.fingerprint.voxel_fingerprint`. Both sorted.
        """
        patients = {patient_key(case["patient"]) for case in self.data if case.get("patient")}
        voxels = {volume.voxel_fingerprint() for volume in self.volumes}
        return {"patients": sorted(patients), "voxels": sorted(voxels)}

    def _finish(self, item: dict[str, Any]) -> Any:
        return item if self.transform is None else self.transform(item)


class PatchDataset(StoredDataset):
    """Patches drawn at random or from a grid; patch n is always the same one.

    Sample number n, with its random transforms, depends only on (seed, n). So the patches of a run do not
    depend on the number of workers, and a resumed run sees the same ones as an uninterrupted run. With
    `random`, n draws a volume, then a place in it. With `grid`, every pass visits each patch of the grids
    that cover the volumes once, in a new order.

    Args:
        data: see `StoredDataset`.
        patch_size: voxels along X, Y, Z, or one number; multiples of 4, the stride of the network.
        cache_dir: folder of the patch store.
        seed: of the draws, 0 or more.
        hu_min: also the HU of the padding where a volume is smaller than a patch.
        hu_max: see `StoredDataset`.
        transform: see `StoredDataset`.
        augmentation: random transform (MONAI's `Randomizable`) applied before `transform`, seeded for each
            sample; None for none.
        sampling: `random` or `grid`.
        foreground_ratio: see `PatchPlacer`; for `random`.
        vessel_ratio: likewise.

    Raises:
        ValueError: if `patch_size` is not made of positive multiples of 4, if `seed` is negative, or if
            `sampling` is another word.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        patch_size: int | Sequence[int],
        cache_dir: PathLike,
        seed: int = 0,
        hu_min: float = -1000,
        hu_max: float = 1000,
        transform: Transform | None = None,
        augmentation: Compose | None = None,
        sampling: str = "random",
        foreground_ratio: float = 0.0,
        vessel_ratio: float = 0.0,
    ) -> None:
        super().__init__(data, cache_dir, hu_min, hu_max, transform)
        self.patch_size = ensure_tuple_rep(patch_size, 3)
        check(
            patch_size=self.patch_size,
            seed=seed,
            patch_sampling=sampling,
            foreground_ratio=foreground_ratio,
            vessel_ratio=vessel_ratio,
        )
        self.seed = seed
        self.augmentation, self.sampling = augmentation, sampling
        self.placer = PatchPlacer(self.patch_size, foreground_ratio, vessel_ratio)
        self._grid: list[tuple[StoredVolume, tuple[int, ...]]] = []
        self._order = (-1, np.arange(0))

    def prepare(self) -> None:
        """Prepares the volumes, and warns of those that are smaller than a patch or lack contrast."""
        super().prepare()
        for volume in self.volumes:
            if any(length < size for length, size in zip(volume.shape, self.patch_size, strict=True)):
                logger.warning(
                    "%s: its %s voxels are fewer than a patch of %s; it is padded at the end with %g HU",
                    *(volume.case["image"], volume.shape, self.patch_size, self.hu_min),
                )
        if self.sampling == "random" and self.placer.vessel_ratio > 0:
            warn_of_missing_contrast(self.volumes, self.placer.vessel_ratio)

    def draw(self, sample: int) -> tuple[StoredVolume, tuple[int, ...]]:
        """Returns volume and first voxel of a sample; random samples use each volume equally often."""
        if self.sampling == "grid":
            return self._of_grid(sample)
        generator = np.random.default_rng((self.seed, sample))
        volume = self.volumes[int(generator.integers(len(self.volumes)))]
        return volume, self.placer.draw(generator, volume)

    def _of_grid(self, sample: int) -> tuple[StoredVolume, tuple[int, ...]]:
        if not self._grid:
            self._grid = [(v, start) for v in self.volumes for start in grid_starts(v.shape, self.patch_size)]
        number, position = divmod(sample, len(self._grid))
        if self._order[0] != number:
            self._order = number, np.random.default_rng((self.seed, number)).permutation(len(self._grid))
        return self._grid[self._order[1][position]]

    def __getitem__(self, sample: int) -> Any:
        """Returns `{"image": (1, X, Y, Z)}`, int16 HU unless `transform` changes that."""
        volume, start = self.draw(sample)
        patch = self.store.read_patch(volume, start, self.patch_size, pad_value=math.floor(self.hu_min))
        item = {"image": torch.from_numpy(patch)[None]}
        if self.augmentation is not None and len(self.augmentation):
            seed = np.random.default_rng((self.seed, sample, 1)).integers(2**32)  # independent of the place
            item = self.augmentation.set_random_state(seed=int(seed))(item)
        return self._finish(item)


class WholeVolumeDataset(StoredDataset):
    """Whole volumes from the store, for validation; see `StoredDataset` for the arguments."""

    def __getitem__(self, index: int) -> Any:
        """Returns `{"image": (1, X, Y, Z) float32, "spacing_mm": three edges, "name": file name}`."""
        volume = self.volumes[index]
        image = torch.from_numpy(volume.read().astype(np.float32))[None]
        return self._finish({"image": image, "spacing_mm": volume.spacing_mm, "name": volume.name})


class VolumeShare(Sampler[int]):
    """Volumes of this rank: rank r of n takes volumes r, r + n, r + 2 n and so on.

    All ranks have to validate, so a rank without a volume repeats the last one;
    `bundle.handlers.validation.ReconstructionQuality` drops such repeats.

    Args:
        dataset: the volumes.
    """

    def __init__(self, dataset: StoredDataset) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[int]:
        count = len(self.dataset)
        yield from range(rank(), count, world_size()) or range(max(count - 1, 0), count)

    def __len__(self) -> int:
        return len(list(iter(self)))


class ResumableSampler(Sampler[list[int]]):
    """Endless batches of sample numbers that depend only on the iteration.

    Iteration i, counted from 0, has the `batch_size` numbers that begin at i * batch_size. Ranks share them
    evenly and in order, so batches do not depend on the number of ranks. To resume, set `start_iteration` to
    the number of iterations done, before iterating.

    Args:
        batch_size: samples per iteration, of all ranks together.

    Raises:
        SettingsError: if `batch_size` is below 1 or cannot be shared by the ranks.
    """

    def __init__(self, batch_size: int) -> None:
        check(batch_size=batch_size)
        self.batch_size, self.share = batch_size, batch_share(batch_size)
        self.start_iteration = 0

    def __iter__(self) -> Iterator[list[int]]:
        for iteration in itertools.count(self.start_iteration):
            first = iteration * self.batch_size + rank() * self.share
            yield list(range(first, first + self.share))

    def __len__(self) -> int:
        raise TypeError("a ResumableSampler is endless and has no length; give `epoch_length` to the trainer")
