"""Loads a CT volume for inference."""

import logging
import warnings
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.data import ImageReader
from monai.transforms import LoadImaged

from bundle.data.volumes.reading import CTReader


class LoadImageCTPAd(LoadImaged):
    """Loads volumes as (1, X, Y, Z) float32 HU in the file's own axes, only through `CTReader`.

    When a reader refuses a file, MONAI tries its other readers and hides the reason among tracebacks. Here
    the refusal is the error.

    Args:
        keys: items that hold a path.
        allow_missing_keys: see `monai.transforms.MapTransform`.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        self.reader = CTReader()
        with _quiet_gpu_reader():
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
            VolumeError: see `bundle.data.volumes.reading.read_volume`.
        """
        return super().__call__(data, reader or self.reader)


@contextmanager
def _quiet_gpu_reader() -> Iterator[None]:
    """Silences the warning of MONAI's GPU reader, which MONAI builds but this project never uses."""
    plugin = logging.getLogger("monai.data.nvimgcodec_pydicom_plugin")
    level = plugin.level
    plugin.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "NvImgCodecPydicomReader", UserWarning)
            yield
    finally:
        plugin.setLevel(level)
