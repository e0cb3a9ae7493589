"""Saves a reconstruction in HU beside nothing but its own name."""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import KeysCollection, PathLike
from monai.data import MetaTensor
from monai.transforms import SaveImaged
from monai.utils import ImageMetaKey, MetaKeys

from bundle.data.datalist import dataset_root
from bundle.data.names import output_name
from bundle.data.writer import CTWriter


class SaveImageCTPAd(SaveImaged):
    """Saves `<output_dir>/<name>_<output_postfix>.nii.gz` as int16 HU through `CTWriter`.

    A SaveImaged, so that MONAI Label finds and drops it; but errors of the writer are passed on as they are.

    Args:
        keys: volumes (1, X, Y, Z) in HU, with the metadata of their file.
        output_dir: folder of the results, made if missing.
        output_postfix: what is appended to the file's or DICOM folder's name.
        output_ext: .nii.gz or .nii.
        data_root_dir: data set that the files come from (a folder or one file); sub-folders below it are
            repeated below `output_dir`, so that `p1/ct.nii.gz` and `p2/ct.nii.gz` do not meet.
        allow_missing_keys: see `monai.transforms.MapTransform`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: PathLike = "./",
        output_postfix: str = "recon",
        output_ext: str = ".nii.gz",
        data_root_dir: PathLike = "",
        allow_missing_keys: bool = False,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.output_postfix, self.output_ext = output_postfix, output_ext
        self.data_root_dir = dataset_root(data_root_dir) if data_root_dir else ""
        super().__init__(
            keys,
            output_dir=str(output_dir),
            output_postfix=output_postfix,
            output_ext=output_ext,
            output_dtype=np.int16,
            resample=False,
            separate_folder=False,
            data_root_dir=self.data_root_dir,
            writer=CTWriter,
            allow_missing_keys=allow_missing_keys,
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Writes each volume and notes its path as `saved_to` in the metadata.

        Raises:
            VolumeError: if the result would overwrite its input.
        """
        for key in self.key_iterator(dict(data)):
            image = data[key]
            meta = image.meta if isinstance(image, MetaTensor) else {}
            source = meta.get(ImageMetaKey.FILENAME_OR_OBJ, str(key))
            path = self._path(source)
            path.parent.mkdir(parents=True, exist_ok=True)
            writer = CTWriter()
            writer.set_data_array(image)
            writer.set_metadata(meta)
            writer.write(path)
            meta[MetaKeys.SAVED_TO] = str(path)
        return dict(data)

    def _path(self, source: str) -> Path:
        # not MONAI's FolderLayout, which cuts a folder called 1.2.840.113619 at its last dot
        name = output_name(source, self.data_root_dir)
        ending = f"_{self.output_postfix}" if self.output_postfix else ""
        return self.output_dir / name.with_name(f"{name.name}{ending}{self.output_ext}")
