"""Records the geometry of an encoded volume, and brings a decoded one back onto the original's grid."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import ImageMetaKey, MetaKeys, convert_to_numpy
from torch import Tensor

from bundle.data.cases.provenance import Provenance
from bundle.data.latents.file import Record
from bundle.data.volumes.geometry import restore_orientation
from bundle.data.volumes.header_text import header_as_text
from bundle.data.volumes.writing import geometry_header
from bundle.run.names import patient_key


def record_of(
    name: str,
    source: Path,
    image: MetaTensor,
    provenance: Provenance,
    patient: str = "",
) -> Record:
    """Describes a volume that is being encoded.

    Args:
        name: of the decoded file later, without suffix.
        source: the volume's file or series, for its header; need not exist.
        image: (1, X, Y, Z) in RAS axes, with `original_affine`.
        provenance: of its codes.
        patient: name or hash; kept as a salted hash.
    """
    original_affine = convert_to_numpy(torch.as_tensor(image.meta[MetaKeys.ORIGINAL_AFFINE])).astype(float)
    shape = restore_orientation(image, image, "image").shape[1:]
    header, header_class = header_as_text(geometry_header(source, tuple(shape), original_affine))
    x, y, z = image.shape[1:]
    return Record(
        name=name,
        shape=(x, y, z),
        affine=convert_to_numpy(image.affine).astype(float).tolist(),
        original_affine=original_affine.tolist(),
        header=header,
        header_class=header_class,
        settings=dict(provenance.settings),
        model_sha256=provenance.model_sha256,
        patient=patient_key(patient) if patient else "",
        amp=provenance.amp,
        halo=provenance.halo,
    )


def meta_of(record: Record, folder: Path = Path()) -> dict[str, Any]:
    """Returns MONAI's metadata for codes, as if the volume's file were in `folder`."""
    return {
        MetaKeys.AFFINE: torch.tensor(record.affine, dtype=torch.float64),
        MetaKeys.ORIGINAL_AFFINE: np.array(record.original_affine),
        MetaKeys.SPATIAL_SHAPE: np.array(record.cells),
        ImageMetaKey.FILENAME_OR_OBJ: str(folder / record.name),
        "volume_shape": np.array(record.shape),
        "nifti_header": record.header,
        "nifti_header_class": record.header_class,
    }


def restored_volume(decoded: Tensor, meta: Mapping[str, Any]) -> MetaTensor:
    """Crops a decoded volume (1, 4x, 4y, 4z) to its original size and turns it into its original axes.

    Args:
        decoded: of any type.
        meta: from `meta_of`; the result carries it, with the original's affine.
    """
    x, y, z = (int(size) for size in meta["volume_shape"])
    volume = MetaTensor(decoded[:, :x, :y, :z], meta=dict(meta))
    return restore_orientation(volume, volume, "codes")
