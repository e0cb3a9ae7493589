"""Reads encoded volumes as the data set of a latent diffusion model: whole, or patches with positions.

The latents come from the files that configs/encode.yaml wrote. That config loads, reorients and windows
volumes exactly as training does, so a diffusion model needs no reader of its own.

Dimension letters: E embedding width, K codes, x y z latent cells (4 x 4 x 4 voxels each; axes to the right,
anterior and superior).
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import PathLike
from monai.utils import ensure_tuple_rep
from torch import Tensor
from torch.utils.data import Dataset

from bundle.data.cases.patients import Case, check_independence, validation_patients
from bundle.data.cases.split import dataset_root, split_cases
from bundle.data.latents.file import SUFFIX, LatentFileError, read_latent_file, read_record
from bundle.data.latents.find import encoded_cases
from bundle.data.latents.statistics import LatentStatistics
from bundle.run.atomic import complete_or_absent
from bundle.run.names import ANY_NAME, output_name, patient_key
from bundle.run.rules import STRIDE

logger = logging.getLogger(__name__)

SOURCES = ("codes", "latents", "indices")


class LatentDataError(ValueError):
    """A data set of latents that breaks a rule; the message names the argument or the files."""


def split_encoded(
    dataset_dir: PathLike,
    settings: Mapping[str, Any],
    source_dir: PathLike | None = None,
    allow_shared_patients: bool = False,
) -> dict[str, list[Case]]:
    """Splits encoded volumes by patient, in the same way as training split their volumes.

    Files hold a salted hash of their patient. Files of version 0.1 do not; there the first folder is the
    patient.

    Args:
        dataset_dir: folder of `_codes.npz`, or one of them.
        settings: `network_settings` of the model.
        source_dir: the `dataset_dir` that was trained on and encoded, whose split is then repeated. Needed if
            that was a store, or a datalist with its own split. None = split by patient as training on a
            folder does.
        allow_shared_patients: whether a patient may be in training and in validation, with a warning.

    Returns:
        `{"training": cases, "validation": cases}` of items `{"image": path, "patient": name}`.

    Raises:
        DatasetError: see `encoded_cases` and `split_cases`.
        SharedPatientsError: if a patient is on both sides and `allow_shared_patients` is false.
        LatentDataError: if there are no codes at all for one side of `source_dir`'s split.
    """
    root = Path(dataset_root(Path(dataset_dir).expanduser()))
    files = [Path(case["image"]) for case in encoded_cases(dataset_dir, settings)]
    if source_dir is not None:
        split = _split_as(files, root, Path(source_dir).expanduser(), allow_shared_patients)
    else:
        cases = [{"image": str(path), "patient": _patient(path, root)} for path in files]
        chosen = validation_patients({case["patient"] for case in cases})
        split = {
            "training": [case for case in cases if case["patient"] not in chosen] or cases,
            "validation": [case for case in cases if case["patient"] in chosen],
        }
    check_independence(split, allow_shared_patients)
    return split


def _patient(path: Path, root: Path) -> str:
    """Returns the patient to split by: the folder if it is named after the patient, else the hash."""
    parts = path.relative_to(root).parts
    name = parts[0] if len(parts) > 1 else path.name.removesuffix(SUFFIX)
    known = read_record(path).patient
    return name if known in ("", patient_key(name)) else known


def _split_as(
    files: Sequence[Path], root: Path, source_dir: Path, allow_shared_patients: bool
) -> dict[str, list[Case]]:
    encoded = {path.relative_to(root).as_posix().removesuffix(SUFFIX): str(path) for path in files}
    split: dict[str, list[Case]] = {}
    for side, cases in split_cases(source_dir, None, allow_shared_patients).items():
        names = [(output_name(case["image"], dataset_root(source_dir)).as_posix(), case) for case in cases]
        split[side] = [
            {"image": encoded[name], "patient": case["patient"]} for name, case in names if name in encoded
        ]
        if not split[side]:
            raise LatentDataError(
                f"{root}: holds no codes of the {side} volumes of {source_dir}, such as "
                f"{names[0][0]}{SUFFIX}; encode that data set, or give another `source_dir`"
            )
    return split


class LatentDataset(Dataset):
    """Latents of encoded volumes, whole or as patches drawn at random.

    An item is a dictionary:

    - `image`: (E, x, y, z) float32, normalised if there are statistics; for `indices` (1, x, y, z) int64.
    - `position`: (3, x, y, z) float32, the centre of each cell in its volume, per axis from -1
      (left, posterior, inferior face) to 1 (right, anterior, superior face): channels for the model.
    - `start`: (3,) int64, first cell in its volume.
    - `affine`: (4, 4) float64, voxels of what the latent decodes to (4 per cell) to RAS mm.
    - `name`: of the volume.

    Patch n is always the same: (seed, n) draws a volume, each equally likely, then a place in it. n has no
    upper limit, so a loader with a `bundle.data.patches.dataset.ResumableSampler` never repeats; `len` is the
    number of volumes. Files are unpacked once into `cache_dir` (2 bytes per cell, 16 for `latents`) and read
    from there by memory map, so a patch does not cost reading a volume.

    Args:
        data: items with `image`, the path of a `_codes.npz`; see `split_encoded`.
        cache_dir: folder of the unpacked arrays; may be deleted.
        source: `codes` (vectors that the decoder saw), `latents` (the encoder's output before quantization,
            stored as float16) or `indices`.
        patch_size: voxels along X, Y, Z, or one number, multiples of 4; None = whole volumes, where item n is
            volume n.
        code_vectors: (K, E), needed for `codes`; see `VQGAN.code_vectors`.
        statistics: to normalise with; None = latents as the decoder takes them.
        seed: of the draws, 0 or more.

    Raises:
        LatentDataError: if an argument breaks its rule, or volumes are smaller than a patch.
        LatentFileError: if a file is damaged; from `prepare`, also if one has no latents.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        cache_dir: PathLike,
        source: str = "codes",
        patch_size: int | Sequence[int] | None = None,
        code_vectors: Tensor | None = None,
        statistics: LatentStatistics | None = None,
        seed: int = 0,
    ) -> None:
        if source not in SOURCES:
            raise LatentDataError(f"`source` must be one of {', '.join(SOURCES)}, got {source!r}")
        if source == "codes" and code_vectors is None:
            raise LatentDataError(
                "`code_vectors` must be given for `source` codes; take VQGAN.code_vectors()"
            )
        if statistics is not None and statistics.source != source:
            raise LatentDataError(
                f"`statistics` must be of {source}, got those of {statistics.source}; measure them again"
            )
        self.paths = [Path(case["image"]) for case in data]
        self.records = [read_record(path) for path in self.paths]
        self.cache_dir, self.source, self.seed = Path(cache_dir).expanduser(), source, seed
        self.code_vectors, self.statistics = code_vectors, statistics
        self.patch_cells = None if patch_size is None else self._in_cells(ensure_tuple_rep(patch_size, 3))
        self._arrays: list[np.ndarray] | None = None

    def _in_cells(self, patch_size: Sequence[int]) -> tuple[int, ...]:
        if any(size <= 0 or size % STRIDE for size in patch_size):
            raise LatentDataError(
                f"`patch_size` must be made of positive multiples of {STRIDE}, got {list(patch_size)}"
            )
        cells = tuple(size // STRIDE for size in patch_size)
        small = [
            f"{path} {list(record.shape)}"
            for path, record in zip(self.paths, self.records, strict=True)
            if any(size > length for size, length in zip(cells, record.cells, strict=True))
        ]
        if small:
            raise LatentDataError(
                f"`patch_size` must fit into every volume, got {list(patch_size)} voxels; smaller are "
                f"{', '.join(small)}: set a smaller one with --patch_size, or leave these out"
            )
        return cells

    def __len__(self) -> int:
        return len(self.paths)

    def prepare(self) -> None:
        """Unpacks files that `cache_dir` does not hold yet. Call it before workers start."""
        self.cache_dir.mkdir(parents=True, exist_ok=True)
        self._arrays = [np.load(self._unpacked(path), mmap_mode="r") for path in self.paths]

    def _unpacked(self, path: Path) -> Path:
        state = path.stat()
        kind = "latents" if self.source == "latents" else "indices"
        key = f"{path.resolve()} {state.st_size} {state.st_mtime_ns} {kind}"
        unpacked = self.cache_dir / f"{hashlib.sha256(key.encode(errors=ANY_NAME)).hexdigest()[:32]}.npy"
        if not unpacked.is_file():
            volume = read_latent_file(path)
            array = volume.latents if kind == "latents" else volume.indices[None]
            if array is None:
                raise LatentFileError(f"{path}: holds no latents; encode its volume with --keep_latents true")
            with complete_or_absent(unpacked) as unfinished:
                np.save(unfinished, array)
        return unpacked

    def draw(self, sample: int) -> tuple[int, tuple[int, ...]]:
        """Returns the number of the volume and the first cell (x, y, z) of an item."""
        if self.patch_cells is None:
            return sample, (0, 0, 0)
        generator = np.random.default_rng((self.seed, sample))
        number = int(generator.integers(len(self.paths)))
        free = np.subtract(self.records[number].cells, self.patch_cells)
        return number, tuple(int(generator.integers(room + 1)) for room in free)

    def __getitem__(self, sample: int) -> dict[str, Any]:
        """Returns one item; see the class."""
        if self._arrays is None:
            self.prepare()
        number, start = self.draw(sample)
        record, array = self.records[number], (self._arrays or [])[number]
        size = self.patch_cells or record.cells
        box = tuple(slice(first, first + length) for first, length in zip(start, size, strict=True))
        return {
            "image": self._image(np.ascontiguousarray(array[(slice(None), *box)])),
            "position": _position(box, record.cells),
            "start": torch.tensor(start),
            "affine": _affine_at(record.affine, start),
            "name": record.name,
        }

    def _image(self, stored: np.ndarray) -> Tensor:
        if self.source == "indices":
            return torch.from_numpy(stored.astype(np.int64))
        if self.source == "codes" and self.code_vectors is not None:
            latent = self.code_vectors[torch.from_numpy(stored[0].astype(np.int64))].movedim(-1, 0)
        else:
            latent = torch.from_numpy(stored.astype(np.float32))
        return latent.contiguous() if self.statistics is None else self.statistics.normalise(latent)


def _position(box: Sequence[slice], cells: Sequence[int]) -> Tensor:
    axes = [
        (2 * torch.arange(span.start, span.stop) + 1) / length - 1
        for span, length in zip(box, cells, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def _affine_at(affine: Sequence[Sequence[float]], start: Sequence[int]) -> Tensor:
    moved = torch.tensor(affine, dtype=torch.float64)
    first_voxel = STRIDE * torch.tensor([*start, 0], dtype=torch.float64)
    moved[:3, 3] += (moved @ first_voxel)[:3]
    return moved
