"""Measures mean and standard deviation of each latent channel once, and keeps them beside the model as JSON.

Dimension letters: E embedding width, x y z latent cells, N cells, K codes.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import PathLike
from torch import Tensor

from bundle.data.latents.file import EncodedVolume, LatentFileError, read_latent_file
from bundle.run.atomic import write_text
from bundle.run.files import open_regular
from bundle.run.names import printable

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
# cells copied to float64 at a time: 34 MB with 8 channels
CELLS_AT_A_TIME = 1 << 19


class StatisticsError(ValueError):
    """Statistics that cannot be used or measured; the message names the file or the argument."""


@dataclass(frozen=True)
class LatentStatistics:
    """Statistics of a training set's latents; scaled by them, channels have mean 0 and deviation 1.

    Attributes:
        source: `codes` (vectors that the decoder saw) or `latents` (the encoder's output).
        mean: per channel, E numbers.
        std: per channel, population standard deviation; 1 where a channel is constant.
        cells: number of cells measured.
        volumes: number of volumes measured.
        model_sha256: `bundle.networks.fingerprint` of the model that encoded them.
    """

    source: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    cells: int
    volumes: int
    model_sha256: str

    def normalise(self, latent: Tensor) -> Tensor:
        """Scales a latent (..., E, x, y, z) to mean 0 and standard deviation 1 per channel, float32."""
        return (latent.float() - self._column(self.mean, latent)) / self._column(self.std, latent)

    def restore(self, latent: Tensor) -> Tensor:
        """Undoes `normalise`, for the decoder."""
        return latent.float() * self._column(self.std, latent) + self._column(self.mean, latent)

    def save(self, path: PathLike) -> None:
        """Writes the JSON whole or not at all."""
        write_text(
            Path(path), json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, indent=1) + "\n"
        )

    @staticmethod
    def _column(values: Sequence[float], latent: Tensor) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=latent.device)[:, None, None, None]


def statistics_for(
    path: PathLike,
    data: Sequence[Mapping[str, Any]],
    source: str,
    model_sha256: str,
    code_vectors: Tensor | None = None,
) -> LatentStatistics:
    """Reads the statistics from a file, or measures them if there is no file yet; writes nothing.

    Args:
        path: of the JSON.
        data: the training set; see `measure_statistics` for the arguments.
        source: `codes` or `latents`.
        model_sha256: of the model.
        code_vectors: of the model.

    Raises:
        StatisticsError: if the file is damaged, or belongs to another model or source.
        LatentFileError: see `measure_statistics`.
    """
    if Path(path).is_file():
        return read_statistics(path, source, model_sha256)
    return measure_statistics(data, source, model_sha256, code_vectors)


def read_statistics(path: PathLike, source: str, model_sha256: str) -> LatentStatistics:
    """Reads the JSON that `LatentStatistics.save` wrote.

    Raises:
        StatisticsError: if it is missing or damaged, or belongs to another model or source.
    """
    try:
        with open_regular(path) as file:
            content = json.load(file)
        lists = {name: tuple(_numbers(content[name])) for name in ("mean", "std")}
        fields = {name: content[name] for name in LatentStatistics.__dataclass_fields__} | lists
        statistics = LatentStatistics(**fields)
        if content["format_version"] != FORMAT_VERSION or not _is_sound(statistics):
            raise ValueError("its numbers are wrong")
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise StatisticsError(
            f"{path}: is not a file of latent statistics ({printable(str(error)):.200}); delete it "
            "to measure again"
        ) from error
    if (statistics.model_sha256, statistics.source) != (model_sha256, source):
        raise StatisticsError(
            f"{path}: measured on {printable(statistics.source):.20} of model "
            f"{printable(statistics.model_sha256[:12])}, here are "
            f"{source} of {model_sha256[:12]}; delete it or name another file with --latent_statistics"
        )
    return statistics


def _numbers(values: Any) -> list[float]:
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        raise TypeError("its mean and std must be lists of numbers")
    return [float(value) for value in values]


def _is_sound(statistics: LatentStatistics) -> bool:
    """Tells whether the numbers fit into float32 and the texts are texts."""
    with np.errstate(over="ignore", under="ignore"):
        mean, std = (np.array(values, np.float32) for values in (statistics.mean, statistics.std))
    words = (statistics.source, statistics.model_sha256)
    counts = (statistics.cells, statistics.volumes)
    return (
        mean.shape == std.shape != (0,)
        and bool(np.isfinite([mean, std]).all() and (std > 0).all() and np.isfinite(1 / std).all())
        and all(isinstance(word, str) for word in words)
        and all(type(count) is int and count > 0 for count in counts)
    )


def measure_statistics(
    data: Sequence[Mapping[str, Any]], source: str, model_sha256: str, code_vectors: Tensor | None = None
) -> LatentStatistics:
    """Measures mean and standard deviation over all cells, one file at a time, in float64.

    Args:
        data: items with `image`, the path of a `_codes.npz`; of the training set only.
        source: `codes` or `latents`.
        model_sha256: recorded.
        code_vectors: (K, E), needed for `codes`; see `VQGAN.code_vectors`.

    Raises:
        StatisticsError: if `source` is neither word, or there are no data.
        LatentFileError: if a file is damaged, belongs to another model, or has no latents.
    """
    if source not in ("codes", "latents") or not data or (source == "codes" and code_vectors is None):
        raise StatisticsError(
            "`data` must hold a volume and `source` be 'codes', with `code_vectors`, or 'latents'; "
            f"got {len(data)} volumes and {source!r}"
        )
    count, mean, squares = 0, np.zeros(1), np.zeros(1)
    for case in data:
        path = Path(case["image"])
        volume = read_latent_file(path)
        if volume.record.model_sha256 != model_sha256:
            raise LatentFileError(f"{path}: encoded by another model; encode its volume again")
        table = None if source == "latents" else np.asarray(code_vectors, np.float64)
        for values, weights in _weighted(path, volume, table):
            # pairwise update (Chan et al. 1983), which subtracts no large sums
            n, total = int(weights.sum()), count + int(weights.sum())
            part = weights @ values / n
            spread = weights @ np.square(values - part)
            squares = squares + spread + np.square(part - mean) * count * n / total
            mean, count = mean + (part - mean) * n / total, total
    std = np.sqrt(squares / count)
    std[std < 1e-6] = 1.0  # FSQ's grid may leave a channel constant
    logger.info(
        "latent channels over %d volumes: mean %s, deviation %s", len(data), mean.round(3), std.round(3)
    )
    return LatentStatistics(source, tuple(mean.tolist()), tuple(std.tolist()), count, len(data), model_sha256)


def _weighted(path: Path, volume: EncodedVolume, table: np.ndarray | None) -> Any:
    """Yields values (n, E) and how often each occurs (n,), part by part."""
    if table is not None:
        yield table, np.bincount(volume.indices.ravel(), minlength=len(table)).astype(np.float64)
        return
    if volume.latents is None:
        raise LatentFileError(f"{path}: holds no latents; encode its volume with --keep_latents true")
    cells = volume.latents.reshape(len(volume.latents), -1)
    for start in range(0, cells.shape[1], CELLS_AT_A_TIME):
        values = cells[:, start : start + CELLS_AT_A_TIME].T.astype(np.float64)
        yield values, np.ones(len(values))
