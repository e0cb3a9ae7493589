"""Training on the images of a MONAI Label datastore, labelled or not; the result becomes the served model."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import monai.bundle
from monailabel.tasks.train.bundle import BundleTrainTask

from bundle.checkpoints.file import NETWORK_SETTINGS, read_checkpoint
from bundle.data.cases.patients import check_independence
from bundle.run.command import merge_configs, plain_path_for_monai
from scripts.monailabel.installing import install_round

logger = logging.getLogger(__name__)

Case = dict[str, str]
# Shown as options by clients, who may send all that `scripts.monailabel.values.TRAINING` lists.
OFFERED = ("max_epochs", "epoch_length", "patch_size", "batch_size", "learning_rate")
# Set by the task itself.
OWN_SETTINGS = ("bundle_root", "dataset_dir", "output_dir", "device", "init_from", "resume_from_checkpoint")


class TrainingDataError(ValueError):
    """A datastore that holds nothing to train on."""


class PatchTrainingTask(BundleTrainTask):
    """One round of `configs/train.yaml` over all images of the datastore.

    Label lists the files directly in `--studies`, so each image counts as a patient. The round starts from
    `models/model.pt` (its weights, strictly; `pretrained` false: from scratch), writes a folder of its own
    below `outputs/monailabel`, and at its end installs what it was for (see `installing`) as
    `models/model.pt`; the model before it stays as `models/model_before_training.pt`. One GPU; for several
    use torchrun.

    Args:
        root: the bundle.
        conf: of the app; `train_configs`: names of configs to merge on train.yaml, e.g.
            `train_with_discriminator`, separated by commas.
    """

    def __init__(self, root: Path, conf: dict[str, str]) -> None:
        super().__init__(str(root), conf)
        self.root = root
        self.model = root / "models" / "model.pt"
        names = [name.strip() for name in conf.get("train_configs", "").split(",") if name.strip()]
        self.config_files = [str(root / "configs" / f"{name}.yaml") for name in ("train", *names)]
        self.settings = _settings(self.config_files)
        self.output_dir = Path()

    def config(self) -> dict[str, Any]:
        """Options that clients show, with their defaults."""
        shown = super().config()
        kept = {name: shown[name] for name in ("device", "pretrained", "val_split")}
        return kept | {name: self.settings[name] for name in OFFERED}

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any]:
        """Trains and installs.

        Args:
            request: `model` and settings that `check_values` let pass.
            datastore: of the app.

        Returns:
            the run's folder, the installed checkpoint and the final figures.

        Raises:
            TrainingDataError: if there is no image.
        """
        started = datetime.now(UTC).strftime("%Y%m%d_%H%M%S_%f")
        self.output_dir = self.root / "outputs" / "monailabel" / started
        super().__call__({**request, "multi_gpu": False, "force_multi_gpu": False}, datastore)
        trained = install_round(self.output_dir, {**self.settings, **request}, self.model)
        figures = json.loads((self.output_dir / "run.json").read_text(encoding="utf-8"))["figures"]
        return {"output_dir": str(self.output_dir), "installed": str(trained), "figures": figures}

    def run_single_gpu(self, request: dict[str, Any], overrides: dict[str, Any]) -> None:
        """Runs the workflow in this process, with the server's own logging."""
        # Label's two would hide `max_epochs` from the schedules, and handlers of merged configs.
        for name in ("train#trainer#max_epochs", "train#handlers"):
            overrides.pop(name, None)
        # A tuple is one value to the config parser: names of files in it are never evaluated or looked up.
        overrides = {
            name: tuple(value) if isinstance(value, list) else value for name, value in overrides.items()
        }
        given = {name: value for name, value in request.items() if name in self.settings}
        if request.get("pretrained", True) and self.model.is_file():
            network = read_checkpoint(self.model)["network"]
            given = {name: network[name] for name in NETWORK_SETTINGS if name in network} | given
            given["init_from"] = plain_path_for_monai(str(self.model))
        overrides["bundle_root"] = plain_path_for_monai(str(self.root))
        monai.bundle.run(
            run_id="run",
            meta_file=self.bundle_metadata_path,
            config_file=self.config_files,
            logging_file=False,  # type: ignore[arg-type]  # leaves Label's own logging alone
            output_dir=plain_path_for_monai(str(self.output_dir)),
            **overrides,
            **given,
        )

    def _fetch_datalist(self, request: Mapping[str, Any], datastore: Any) -> list[Case]:
        found = {name: datastore.get_image_uri(name) for name in sorted(datastore.list_images())}
        cases = [{"image": path, "patient": name} for name, path in found.items() if os.path.isfile(path)]
        for name in found.keys() - {case["patient"] for case in cases}:
            logger.warning("%s: is no file any more, or a pipe; it is left out", name)
        if not cases:
            raise TrainingDataError(f"{datastore.name()}: holds no image; put volumes into `--studies`")
        return cases

    def _partition_datalist(
        self, datalist: list[Case], request: Mapping[str, Any], shuffle: bool = False
    ) -> tuple[list[Case], list[Case]]:
        """Splits by patient; the same patients always give the same split.

        Raises:
            SharedPatientsError: if there is one image only, unless `allow_shared_patients` is set.
        """
        patients = sorted({case["patient"] for case in datalist}, key=_hash)
        n_validation = max(1, min(round(request.get("val_split", 0.2) * len(patients)), len(patients) - 1))
        chosen = set(patients[:n_validation])
        validation = [case for case in datalist if case["patient"] in chosen]
        training = [case for case in datalist if case["patient"] not in chosen]
        split = {"training": training or datalist, "validation": validation}
        check_independence(split, request.get("allow_shared_patients", False))
        return split["training"], split["validation"]

    def _load_checkpoint(self, model_pytorch: str, pretrained: bool, train_handlers: list) -> None:
        """Does nothing: `init_from` loads strictly; Label's handler could keep random weights unnoticed."""


def _settings(config_files: list[str]) -> dict[str, Any]:
    """Returns the top-level numbers and words of the merged configs that a request may set."""
    merged = merge_configs(config_files).get()
    return {
        name: value
        for name, value in merged.items()
        if not isinstance(value, dict) and name not in (*OWN_SETTINGS, "initialize", "run", "_meta_")
    }


def _hash(patient: str) -> str:
    return hashlib.sha256(f"ctpa_vqgan/monailabel/{patient}".encode()).hexdigest()
