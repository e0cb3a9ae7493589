"""Reconstructs one volume in MONAI Label, voxel for voxel as `configs/inference.yaml` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monailabel.interfaces.tasks.infer_v2 import InferType
from monailabel.tasks.infer.bundle import BundleConstants, BundleInferTask

from bundle.checkpoints.file import NETWORK_SETTINGS, load_generator, read_checkpoint
from bundle.data.volumes.writing import CTWriter
from bundle.networks.vqgan import VQGAN

# Entry of a request that only the server sets: the folder for the result.
FOLDER = "result_folder"


class ReconstructionTask(BundleInferTask):
    """`BundleInferTask` that runs only the installed model, loaded strictly.

    Preset, quantizer, number of codes and HU window are those of `models/model.pt`, whatever the config's
    defaults are. MONAI Label's own task would load the .pt file with the shortest name, keep random weights
    where names do not match, skip mixed precision, and round the geometry through ITK.

    Args:
        root: the bundle.
        conf: of the app.
        const: names the config; None = `configs/inference.yaml`.

    Raises:
        CheckpointError: if `models/model.pt` is missing, damaged, foreign or does not fit its own settings.
    """

    def __init__(self, root: Path, conf: dict[str, str], const: BundleConstants | None = None) -> None:
        self.checkpoint = root / "models" / "model.pt"
        self._content = read_checkpoint(self.checkpoint)
        super().__init__(str(root), conf, const, type=InferType.OTHERS, add_post_restore=False)
        self._config["model_filename"] = [self.checkpoint.name]
        self.generator: VQGAN = self.network.eval()
        load_generator(self.generator, self.checkpoint, self._content)
        self._content = {}

    def writer(
        self, data: dict[str, Any], extension: str | None = None, dtype: Any = None
    ) -> tuple[str, dict]:
        """Writes int16 HU with the geometry of the input.

        Args:
            data: output of the postprocessing, with `result_folder`, and `result_extension` .nii or .nii.gz
                (default).
            extension: takes precedence over `result_extension`.
            dtype: ignored, since whole HU are int16.

        Returns:
            path of the file, and an empty result.
        """
        extension = extension or data.get("result_extension") or ".nii.gz"
        path = Path(data[FOLDER]) / f"reconstruction{extension}"
        pred = data[self.output_label_key]
        writer = CTWriter()
        writer.set_data_array(pred)
        writer.set_metadata(pred.meta)
        writer.write(path)
        return str(path), {}

    def run_inferer(
        self, data: dict[str, Any], convert_to_batch: bool = True, device: str = "cuda"
    ) -> dict[str, Any]:
        """Runs the inferer; in bf16 on a GPU if the config says `amp`, as inference does."""
        is_mixed = device.startswith("cuda") and bool(self.bundle_config.get_parsed_content("amp"))
        with torch.autocast("cuda", torch.bfloat16, enabled=is_mixed):
            return super().run_inferer(data, convert_to_batch, device)

    def _get_network(self, device: str, data: dict[str, Any] | None) -> torch.nn.Module:
        return self.generator.to(device)

    def _load_bundle_config(self, path: str, config: str) -> ConfigParser:
        parser = super()._load_bundle_config(path, config)
        network = self._content["network"]
        parser.update({name: network[name] for name in NETWORK_SETTINGS if name in network})
        return parser
