"""Saves a reconstruction in HU, as NIfTI or as a DICOM series, and a JSON that says how it was made."""

from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import KeysCollection, PathLike
from monai.data import MetaTensor
from monai.transforms import SaveImaged
from monai.utils import ImageMetaKey, MetaKeys

from bundle.data.cases.provenance import (
    Provenance,
    forget_provenance,
    read_provenance,
    write_provenance,
)
from bundle.data.cases.split import dataset_root
from bundle.data.dicom.derived import SeriesWriter, check_source, check_target, derivation_text
from bundle.data.volumes.nifti import VolumeError
from bundle.data.volumes.writing import CTWriter
from bundle.run.names import output_name
from bundle.run.rules import check


class OutputFormatError(ValueError):
    """An `output_format` that does not exist, or lacks what it needs."""


class SaveImageCTPAd(SaveImaged):
    """Saves `<output_dir>/<name>_<output_postfix>.nii.gz`, or a DICOM series in a folder of that name.

    Both hold int16 HU. If `check` was given a provenance, a JSON beside the result says how it was made. This
    is a subclass of SaveImaged, so that MONAI Label recognizes and drops it. Unlike SaveImaged it passes on
    the writer's errors unchanged.

    Args:
        keys: volumes (1, X, Y, Z) in HU, with the metadata of their file.
        output_dir: folder of the results, made if missing.
        output_postfix: what is appended to the file's or DICOM folder's name.
        output_ext: .nii.gz or .nii.
        output_format: nifti; or dicom, a series derived from the input's, which must be DICOM.
        settings: `network_settings` of the model, for the series' DerivationDescription.
        data_root_dir: data set that the files come from (a folder or one file); sub-folders below it are
            repeated below `output_dir`, so that `p1/ct.nii.gz` and `p2/ct.nii.gz` stay apart.
        allow_missing_keys: see `monai.transforms.MapTransform`.

    Raises:
        SettingsError: if `output_format` is neither.
        OutputFormatError: if `output_format` is dicom and `settings` is None.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: PathLike = "./",
        output_postfix: str = "recon",
        output_ext: str = ".nii.gz",
        data_root_dir: PathLike = "",
        output_format: str = "nifti",
        settings: Mapping[str, Any] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        check(output_format=output_format)
        if output_format == "dicom" and settings is None:
            raise OutputFormatError(
                "`settings` must be given with `output_format` dicom, got None; give the model's"
            )
        self.output_format, self.settings = output_format, dict(settings or {})
        self.provenance: Callable[[], Provenance] | None = None  # set by `check`
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
            VolumeError: if the result would overwrite its input, or anything that is not an earlier result.
        """
        for key in self.key_iterator(dict(data)):
            image = data[key]
            meta = image.meta if isinstance(image, MetaTensor) else {}
            source = meta.get(ImageMetaKey.FILENAME_OR_OBJ, str(key))
            path = self.path_of(source)
            writer = self._writer()
            writer.set_data_array(image)
            writer.set_metadata(meta)
            forget_provenance(path)
            writer.write(path)
            if self.provenance is not None:
                write_provenance(path, self.provenance())
            meta[MetaKeys.SAVED_TO] = str(path)
        return dict(data)

    def check(
        self, cases: Iterable[Mapping[str, Any]], provenance: Callable[[], Provenance], key: str = "image"
    ) -> None:
        """Takes the provenance, and refuses volumes whose result could not be saved before hours of work.

        Args:
            cases: items that hold the path of a volume.
            provenance: called once weights are loaded; says how the results are made. It is not an argument
                of the class, since a server builds this transform without a network.
            key: of the path.

        Raises:
            VolumeError: naming every volume that cannot become DICOM.
        """
        self.provenance = provenance
        faults = [fault for case in cases if (fault := self.fault(str(case[key])))]
        if faults:
            raise VolumeError("\n  ".join(["`output_format` dicom does not go here:", *faults]))

    def path_of(self, source: PathLike) -> Path:
        """Returns the path of a volume's result."""
        # not MONAI's FolderLayout, which cuts a folder called 1.2.840.113619 at its last dot
        name = output_name(source, self.data_root_dir)
        ending = f"_{self.output_postfix}" if self.output_postfix else ""
        ext = self.output_ext if self.output_format == "nifti" else ""
        return self.output_dir / name.with_name(f"{name.name}{ending}{ext}")

    def is_done(self, source: PathLike) -> bool:
        """Tells whether that result exists, made as this run would make it."""
        return self.provenance is not None and read_provenance(self.path_of(source)) == self.provenance()

    def fault(self, source: PathLike) -> str | None:
        """Says why the result of a volume cannot be saved; None if it can."""
        if self.output_format == "nifti":
            return None
        try:
            check_source(Path(source))
            check_target(self.path_of(source), Path(source))
        except VolumeError as error:
            return str(error)
        return None

    def _writer(self) -> CTWriter:
        if self.output_format == "nifti":
            return CTWriter()
        model = self.provenance().model_sha256 if self.provenance else "unknown"
        return SeriesWriter(derivation_text(self.settings, model))
