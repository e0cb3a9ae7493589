"""Saving of volumes in HU inside MONAI pipelines."""

from pathlib import Path

from monai.config import KeysCollection
from monai.transforms import SaveImaged

from bundle.data.writer import CTWriter


class SaveImageCTPAd(SaveImaged):
    """`monai.transforms.SaveImaged` through `CTWriter`: `<name>_<postfix>.nii.gz`, int16, with the input's geometry.

    A subclass whose name holds `SaveImage`, because MONAI Label and Deploy drop savers so.

    Args:
        keys: keys of MetaTensors (1, X, Y, Z) in whole HU.
        output_dir: folder of the result, made when the first volume is written.
        output_postfix: added to the file's name.
    """

    def __init__(self, keys: KeysCollection, output_dir: str | Path, output_postfix: str) -> None:
        super().__init__(
            keys=keys,
            output_dir=output_dir,
            output_postfix=output_postfix,
            output_ext=".nii.gz",
            output_dtype=None,
            resample=False,
            separate_folder=False,
            print_log=False,
            writer=CTWriter,
        )
