"""Loads a CT volume for inference."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.data import ImageReader
from monai.transforms import LoadImaged

from bundle.data.volume import CTReader


class LoadImageCTPAd(LoadImaged):
    """Loads NIfTI as (1, X, Y, Z) float32 HU in the file's own axes, through `CTReader` and no other reader.

    MONAI falls back to its own readers when one refuses a file, and hides the reason among tracebacks; here
    the refusal is the error.

    Args:
        keys: items that hold a path.
        allow_missing_keys: see `monai.transforms.MapTransform`.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        self.reader = CTReader()
        super().__init__(
            keys,
            reader=CTReader,
            dtype=np.float32,
            image_only=True,
            ensure_channel_first=True,
            allow_missing_keys=allow_missing_keys,
        )

    def __call__(
        self, data: Mapping[Hashable, Any], reader: ImageReader | None = None
    ) -> dict[Hashable, Any]:
        """Replaces each path by a MetaTensor.

        Raises:
            VolumeError: see `bundle.data.volume.read_volume`.
        """
        return super().__call__(data, reader or self.reader)
