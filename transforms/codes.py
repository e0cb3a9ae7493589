"""Saves a volume's codes, loads them, and brings a decoded volume back onto the original's grid."""

import logging
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, PathLike
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ImageMetaKey, convert_to_numpy

from bundle.data.cases.provenance import Provenance
from bundle.data.latents.file import (
    SUFFIX,
    EncodedVolume,
    LatentFileError,
    Record,
    holds_latents,
    read_latent_file,
    read_record,
    write_latent_file,
)
from bundle.data.latents.geometry import meta_of, record_of, restored_volume
from bundle.run.names import output_name

logger = logging.getLogger(__name__)


class SaveCodesd(MapTransform):
    """Saves `<output_dir>/<name>_codes.npz`; see `bundle.data.latents.file` for the format.

    Args:
        keys: codes (1, x, y, z), or codes and latents (1 + E, x, y, z), as `EncodingInferer` gives them.
        image_key: the volume they were made from, a MetaTensor (1, X, Y, Z) in RAS axes.
        output_dir: folder of the results, made if missing.
        data_root_dir: folder of the data set; sub-folders below it are repeated below `output_dir`.
        provenance: called once weights are loaded; says how the codes are made.
        keep_latents: whether a file without latents has to be made again.
    """

    def __init__(
        self,
        keys: KeysCollection,
        image_key: str,
        output_dir: PathLike,
        data_root_dir: PathLike,
        provenance: Callable[[], Provenance],
        keep_latents: bool = False,
    ) -> None:
        super().__init__(keys)
        self.image_key = image_key
        self.output_dir, self.data_root_dir = Path(output_dir), data_root_dir
        self.provenance, self.keep_latents = provenance, keep_latents

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Writes each file, and logs its size and the original's."""
        for key in self.key_iterator(dict(data)):
            image = data[self.image_key]
            source = Path(image.meta[ImageMetaKey.FILENAME_OR_OBJ])
            path = self.path_of(source)
            codes = convert_to_numpy(data[key])
            latents = codes[1:].astype(np.float16) if len(codes) > 1 else None
            name = path.name.removesuffix(SUFFIX)
            record = record_of(name, source, image, self.provenance(), str(data.get("patient", "")))
            write_latent_file(path, EncodedVolume(record, codes[0].astype(np.uint16), latents))
            _log_size(path, source, record)
        return dict(data)

    def path_of(self, source: PathLike) -> Path:
        """Returns the path of a volume's codes."""
        name = output_name(source, self.data_root_dir)
        return self.output_dir / name.with_name(name.name + SUFFIX)

    def is_done(self, source: PathLike) -> bool:
        """Tells whether that file exists, made as this run would make it."""
        path = self.path_of(source)
        try:
            is_same = read_record(path).provenance == self.provenance()
            return is_same and (not self.keep_latents or holds_latents(path))
        except LatentFileError:
            return False

    def fault(self, source: PathLike) -> str | None:
        """Returns None: whether codes can be saved is known only after encoding."""
        return None


def check_model(cases: Iterable[Mapping[str, str]], key: str, model_fingerprint: str) -> None:
    """Refuses codes that another model than the loaded one made.

    Args:
        cases: items that hold the path of a `_codes.npz`.
        key: of the path.
        model_fingerprint: see `bundle.networks.fingerprint`.

    Raises:
        LatentFileError: naming every such file.
    """
    foreign = [
        f"{case[key]} ({found[:12]})"
        for case in cases
        if (found := read_record(Path(case[key])).model_sha256) != model_fingerprint
    ]
    if foreign:
        raise LatentFileError(
            f"{', '.join(foreign)}: encoded by another model than this one ({model_fingerprint[:12]}); "
            "decode with the checkpoint that encoded it"
        )


class LoadCodesd(MapTransform):
    """Loads codes as (1, x, y, z) int32, or latents as (E, x, y, z) float32, with the volume's geometry.

    Args:
        keys: items that hold the path of a `_codes.npz`.
        from_latents: whether to load the latents in place of the codes.
    """

    def __init__(self, keys: KeysCollection, from_latents: bool) -> None:
        super().__init__(keys)
        self.from_latents = from_latents

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replaces each path by a MetaTensor.

        Raises:
            LatentFileError: if a file is damaged, or has no latents although they are wanted.
        """
        loaded = dict(data)
        for key in self.key_iterator(loaded):
            path = Path(loaded[key])
            volume = read_latent_file(path)
            loaded[key] = MetaTensor(self._array(path, volume), meta=meta_of(volume.record, path.parent))
        return loaded

    def _array(self, path: Path, volume: EncodedVolume) -> torch.Tensor:
        if not self.from_latents:
            return torch.from_numpy(volume.indices.astype(np.int32))[None]
        if volume.latents is None:
            raise LatentFileError(f"{path}: holds no latents; encode its volume with --keep_latents true")
        return torch.from_numpy(volume.latents.astype(np.float32))


class RestoreVolumed(MapTransform):
    """Crops a decoded volume to its original size and turns it into its original axes.

    Args:
        keys: volumes (1, 4x, 4y, 4z), any type.
        codes_key: what they were decoded from, with the metadata of `LoadCodesd`.
    """

    def __init__(self, keys: KeysCollection, codes_key: str) -> None:
        super().__init__(keys)
        self.codes_key = codes_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Restores each volume; its metadata become those of the original file."""
        restored = dict(data)
        for key in self.key_iterator(restored):
            restored[key] = restored_volume(restored[key], restored[self.codes_key].meta)
        return restored


def _log_size(path: Path, source: Path, record: Record) -> None:
    size = path.stat().st_size
    voxels = np.prod(record.shape)
    beside = f", 1/{source.stat().st_size / size:.0f} of its source" if source.is_file() else ""
    logger.info("wrote %s: %.2f MB, %.3f bit per voxel%s", path, size / 1e6, 8 * size / voxels, beside)
