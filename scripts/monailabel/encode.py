"""Encodes one volume in MONAI Label, into the file that `configs/encode.yaml` writes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import torch
from monailabel.tasks.infer.bundle import BundleConstants

from bundle.archives.maker import Maker
from bundle.data.cases.split import find_cases
from bundle.data.latents.file import SUFFIX
from bundle.data.volumes.formats import writable_suffixes
from scripts.monailabel.infer import FOLDER, ReconstructionTask
from transforms.codes import SaveCodesd


class EncodeConfig(BundleConstants):
    """The config that `BundleInferTask` looks for."""

    def configs(self) -> Sequence[str]:
        """Lists files below `configs`."""
        return ["encode.yaml"]


class EncodingTask(ReconstructionTask):
    """Encodes with the installed model; see `ReconstructionTask` for what it loads and refuses."""

    def __init__(self, root: Path, conf: dict[str, str]) -> None:
        super().__init__(root, conf, const=EncodeConfig())
        config = self.bundle_config
        settings, halo = config.get_parsed_content("network_settings"), config.get_parsed_content("halo")
        is_mixed = bool(config.get_parsed_content("amp")) and torch.cuda.is_available()
        self._provenance = Maker(self.generator, settings, is_mixed, halo)()

    def post_transforms(self, data: dict[str, Any] | None = None) -> Sequence[Callable]:
        """Returns none: the config's would write into its `output_dir`."""
        return []

    def writer(
        self, data: dict[str, Any], extension: str | None = None, dtype: Any = None
    ) -> tuple[str, dict]:
        """Writes the codes.

        Args:
            data: with `image`, its output of `EncodingInferer`, `image_path` and `result_folder`.
            extension: ignored, since codes have only one form.
            dtype: likewise.

        Returns:
            path of the file, and an empty result.
        """
        path = Path(data[FOLDER]) / f"volume{SUFFIX}"
        item: dict[Hashable, Any] = {name: data[name] for name in (self.key_image, self.output_label_key)}
        item["patient"] = _patient_of(Path(data["image_path"]), Path(data[FOLDER]))
        with tempfile.TemporaryDirectory(dir=data[FOLDER]) as folder:
            save = SaveCodesd(
                self.output_label_key,
                self.key_image,
                folder,
                data_root_dir="",
                provenance=lambda: self._provenance,
            )
            save(item)
            (written,) = Path(folder).rglob(f"*{SUFFIX}")
            os.replace(written, path)
        return str(path), {}


def _patient_of(image: Path, folder: Path) -> str:
    """Returns the patient as `configs/encode.yaml` names it; unknown for an uploaded NIfTI file."""
    is_nameless = image.parent == folder and image.name.endswith(writable_suffixes())
    return "" if is_nameless else find_cases(image)[0]["patient"]
