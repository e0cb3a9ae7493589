"""Three lines of Python for researchers: whole volumes to their reconstruction or codes, and back.

    from bundle import load_model
    model = load_model()  # the model that ships; load_model("last.pt"): your own
    hu = model.reconstruct("ct.nii.gz")

The results equal, voxel by voxel, what configs/inference.yaml, encode.yaml and decode.yaml write: same RAS
axes, same HU window, same slabs or tiles.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import ImageMetaKey, MetaKeys
from torch import Tensor

from bundle.checkpoints.file import (
    INSTALLED_MODEL,
    CheckpointError,
    load_generator,
    read_checkpoint,
    settings_in,
)
from bundle.data.cases.provenance import Provenance, short_halo
from bundle.data.latents.file import EncodedVolume, LatentFileError, read_latent_file
from bundle.data.latents.geometry import meta_of, record_of, restored_volume
from bundle.data.volumes.geometry import restore_orientation, to_ras
from bundle.data.volumes.reading import CTReader
from bundle.data.volumes.window import is_finite, to_network_range, to_whole_hu
from bundle.data.volumes.writing import CTWriter
from bundle.inferers.coding import DecodingInferer, EncodingInferer
from bundle.inferers.halo import HaloInferer
from bundle.networks.fingerprint import fingerprint
from bundle.networks.vqgan import VQGAN, build_vqgan
from bundle.run.names import volume_name

__all__ = ["Model", "ModelInputError", "load_model", "save_volume"]


class ModelInputError(ValueError):
    """A volume that a model cannot take; the message says why and what to do."""


def load_model(
    checkpoint: str | os.PathLike | None = None, device: torch.device | str | None = None
) -> "Model":
    """Builds the generator that a checkpoint names, with its weights.

    Args:
        checkpoint: training checkpoint or installed model, saved on any device; None = the bundle's
            `models/model.pt`: the model that ships, or what was installed in its place.
        device: where it runs; None = the first GPU if there is one, else the CPU.

    Raises:
        CheckpointError: if the file is missing, damaged, foreign, or of a network that this version does not
            know.
    """
    path = INSTALLED_MODEL if checkpoint is None else Path(checkpoint).expanduser()
    content = read_checkpoint(path)
    settings = settings_in(path, content)
    try:
        network = build_vqgan(settings["preset"], settings["quantizer"], settings["num_embeddings"])
    except ValueError as error:
        raise CheckpointError(f"{path}: names a network that this version does not know: {error}") from error
    load_generator(network, path, content)
    if device is None:
        device = "cuda:0" if torch.cuda.is_available() else "cpu"
    return Model(network.to(device).eval(), settings)


class Model:
    """A trained generator that takes and returns whole CT volumes in HU.

    Volumes stay on the CPU, and slabs or tiles travel to the network's device. With the default halo the
    result equals that of the whole volume, whatever their size.

    Args:
        network: the generator, on its device, in eval mode.
        settings: `network_settings` of its checkpoint.

    Attributes:
        network: see above.
        settings: preset, quantizer, num_embeddings, hu_min, hu_max.
    """

    def __init__(self, network: VQGAN, settings: dict[str, Any]) -> None:
        self.network, self.settings = network, settings

    @property
    def window(self) -> tuple[float, float]:
        """Returns (hu_min, hu_max); voxels outside come back clipped."""
        return self.settings["hu_min"], self.settings["hu_max"]

    @cached_property
    def sha256(self) -> str:
        """Returns the fingerprint of the weights, which files of codes hold too."""
        return fingerprint(self.network)

    def reconstruct(
        self,
        volume: str | os.PathLike | MetaTensor,
        tile_size: int | Sequence[int] | str = "auto",
        halo: int | None = None,
    ) -> MetaTensor:
        """Encodes and decodes a whole volume.

        Args:
            volume: NIfTI file, DICOM folder or file, file of a store; or (1, X, Y, Z) in HU with its affine.
            tile_size: `auto` = slabs (tiles if memory is short); a number = voxels per axis of a tile
                without halo, a multiple of 4.
            halo: voxels of context around a tile; None = the network's own, which is exact.

        Returns:
            (1, X, Y, Z) int16 in HU, in the axes and with the affine of the input.

        Raises:
            VolumeError: see `bundle.data.volumes.reading.read_volume`.
            ModelInputError: a tensor that is no volume.
            TilingError: a tile or halo that breaks its rule.
        """
        image = to_ras(_loaded(volume))
        with _whole_float32():
            pred = HaloInferer(_tile(tile_size), halo)(self._scaled(image), self.network)
        return restore_orientation(self._whole_hu(pred[0]), image, "volume")

    def encode(
        self,
        volume: str | os.PathLike | MetaTensor,
        keep_latents: bool = False,
        tile_size: int | Sequence[int] | str = "auto",
        halo: int | None = None,
        patient: str = "",
    ) -> EncodedVolume:
        """Encodes a whole volume; `bundle.data.latents.file.write_latent_file` saves the result.

        Dimension letters: E embedding width, x y z latent cells (4 x 4 x 4 voxels each).

        Args:
            volume: see `reconstruct`, also for `tile_size` and `halo`.
            keep_latents: whether to keep the encoder's output before quantization too.
            tile_size: see `reconstruct`.
            halo: see `reconstruct`.
            patient: name or hash; only a salted hash is kept.

        Returns:
            `indices` (x, y, z) uint16; `latents` (E, x, y, z) float16, or None; and the `record`.

        Raises:
            See `reconstruct`.
        """
        image = to_ras(_loaded(volume))
        source = Path(str(image.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "") or "volume"))
        with _whole_float32():
            tiling = HaloInferer(_tile(tile_size), halo)
            codes = EncodingInferer(tiling, keep_latents)(self._scaled(image), self.network)[0].numpy()
        provenance = Provenance(self.sha256, self.settings, halo=short_halo(halo, self.network.halo))
        record = record_of(volume_name(source), source, image, provenance, patient)
        latents = codes[1:].astype(np.float16) if keep_latents else None
        return EncodedVolume(record, codes[0].astype(np.uint16), latents)

    def decode(
        self,
        codes: str | os.PathLike | EncodedVolume,
        tile_size: int | Sequence[int] | str = "auto",
        halo: int | None = None,
    ) -> MetaTensor:
        """Decodes what `encode` or configs/encode.yaml made from a volume; the original is not needed.

        Args:
            codes: result of `encode`, or path of a `_codes.npz` file.
            tile_size: see `reconstruct`.
            halo: see `reconstruct`.

        Returns:
            what `reconstruct` returns.

        Raises:
            LatentFileError: if the file is missing or damaged, or the codes are of another model.
        """
        volume = codes if isinstance(codes, EncodedVolume) else read_latent_file(Path(codes))
        record = volume.record
        if record.model_sha256 != self.sha256:
            raise LatentFileError(
                f"{record.name}: encoded by another model ({record.model_sha256[:12]}) than this one "
                f"({self.sha256[:12]}); load the checkpoint that encoded it"
            )
        indices = torch.from_numpy(volume.indices.astype(np.int64))[None, None]
        with _whole_float32():
            pred = DecodingInferer(HaloInferer(_tile(tile_size), halo))(indices, self.network)
        return restored_volume(self._whole_hu(pred[0]), meta_of(record))

    def to_hu(self, image: Tensor, affine: Any = None) -> MetaTensor:
        """Turns a decoder's output (1, X, Y, Z), about -1 to 1, into int16 HU with an affine."""
        return MetaTensor(self._whole_hu(image), affine=affine)

    def _scaled(self, image: MetaTensor) -> Tensor:
        return to_network_range(image.as_tensor(), *self.window)[None]

    def _whole_hu(self, pred: Tensor) -> Tensor:
        pred = pred.as_subclass(Tensor)
        if not is_finite(pred):
            raise ModelInputError(
                "the network's output must be finite, got NaN or infinite values; take another checkpoint"
            )
        return to_whole_hu(pred, *self.window).cpu()


def save_volume(volume: MetaTensor, path: str | os.PathLike) -> None:
    """Writes HU as int16 NIfTI, with the geometry of the file they were made from.

    Args:
        volume: (1, X, Y, Z), as `Model.reconstruct` and `Model.decode` give it.
        path: ends in .nii or .nii.gz; its folder exists.

    Raises:
        VolumeError: if the path has another suffix, or is the input itself.
    """
    writer = CTWriter()
    writer.set_data_array(volume)
    writer.set_metadata(volume.meta)
    writer.write(Path(path))


def _loaded(volume: str | os.PathLike | MetaTensor) -> MetaTensor:
    """Reads a volume as (1, X, Y, Z) in the axes of its file, with `original_affine` and the file's name."""
    if isinstance(volume, MetaTensor):
        if volume.ndim != 4 or volume.shape[0] != 1 or min(volume.shape) < 1 or volume.is_complex():
            raise ModelInputError(
                f"`volume` must be one volume (1, X, Y, Z) of real numbers in HU, got {tuple(volume.shape)} "
                f"{volume.dtype}; add or remove axes"
            )
        if not is_finite(volume.as_tensor()):
            raise ModelInputError(
                "`volume` must hold finite HU, got NaN or infinite ones; replace them by -1024"
            )
        # results come back on this grid, even if the volume was reoriented or cropped before
        affine = volume.affine.to(torch.float64)
        geometry = {MetaKeys.AFFINE: affine.clone(), MetaKeys.ORIGINAL_AFFINE: affine.clone()}
        return MetaTensor(volume.as_tensor().cpu(), meta={**volume.meta, **geometry})
    if isinstance(volume, Tensor | np.ndarray):
        raise ModelInputError(
            "`volume` must be a path or a MetaTensor, which knows its affine; wrap it in "
            "monai.data.MetaTensor(volume, affine=...)"
        )
    path = Path(volume).expanduser()
    reader = CTReader()
    voxels, meta = reader.get_data(reader.read(path))
    meta |= {MetaKeys.AFFINE: torch.as_tensor(meta[MetaKeys.AFFINE]), ImageMetaKey.FILENAME_OR_OBJ: str(path)}
    return MetaTensor(torch.from_numpy(voxels)[None], meta=meta)


def _tile(tile_size: int | Sequence[int] | str) -> Any:
    return tile_size if isinstance(tile_size, str | int) else tuple(tile_size)


@contextmanager
def _whole_float32() -> Iterator[None]:
    """Turns off TF32, which rounds a GPU's convolutions to 10 bits: tiles would not equal the whole."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
