"""Loading of CT volumes inside MONAI pipelines."""

from collections.abc import Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.transforms import LoadImaged

from bundle.data.volume import CTReader


class LoadImageCTPAd(LoadImaged):
    """`monai.transforms.LoadImaged` through `CTReader`: HU as float32 (1, X, Y, Z), or an error with the file's name.

    A subclass whose name holds `LoadImage`, because MONAI Label and Deploy find loaders so.

    Args:
        keys: keys of file names.
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys=keys, reader=CTReader(), image_only=True, ensure_channel_first=True)

    def __call__(self, data: Mapping[Hashable, Any], reader: Any = None) -> dict[Hashable, Any]:
        """Loads every key; see `bundle.data.volume.read_volume` for what is refused."""
        return super().__call__(data, reader)
