"""Trains on the images of a MONAI Label datastore, labelled or not; the result becomes the served model."""

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

from bundle.checkpoints.file import NETWORK_SETTINGS, check_network, read_settings
from bundle.data.cases.patients import check_independence, patient_of_file
from bundle.data.cases.split import find_cases
from bundle.engines.settings import check_training_settings, settings_of
from bundle.run.command import merge_configs, plain_path_for_monai
from bundle.run.names import shown
from scripts.monailabel.installing import install_round

logger = logging.getLogger(__name__)

Case = dict[str, str]
# Options that clients show. They may send all settings in `scripts.monailabel.values.TRAINING`.
OFFERED = ("max_epochs", "epoch_length", "patch_size", "batch_size", "learning_rate")
# Settings that the task itself sets.
OWN_SETTINGS = ("bundle_root", "dataset_dir", "output_dir", "device", "init_from", "resume_from_checkpoint")


class TrainingDataError(ValueError):
    """A datastore that holds nothing to train on."""


class PatchTrainingTask(BundleTrainTask):
    """One round of `configs/train.yaml` over all images of the datastore.

    MONAI Label lists the files directly in `--studies`, so the name of an image tells its patient. The round
    starts from the weights of `models/model.pt`, or from scratch if `pretrained` is false. It writes its own
    folder below `outputs/monailabel`. At its end it installs its checkpoint (see `installing`) as
    `models/model.pt`, and keeps the previous model as `models/model_before_training.pt`. It uses one GPU; for
    several use torchrun.

    Args:
        root: the bundle.
        conf: of the app; `train_configs`: names of configs to merge on train.yaml, e.g.
            `train_with_discriminator`, separated by commas; `patients`: datalist .json that names the
            patient of every image.
    """

    def __init__(self, root: Path, conf: dict[str, str]) -> None:
        super().__init__(str(root), conf)
        self.root = root
        self.model = root / "models" / "model.pt"
        names = [name.strip() for name in conf.get("train_configs", "").split(",") if name.strip()]
        self.config_files = [str(root / "configs" / f"{name}.yaml") for name in ("train", *names)]
        self.settings = _settings(self.config_files)
        self.patients = conf.get("patients", "").strip()
        self.output_dir = Path()

    def config(self) -> dict[str, Any]:
        """Returns the options that clients show, with their defaults."""
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
        # These two of MONAI Label would hide `max_epochs` from the schedules, and the handlers of merged
        # configs.
        for name in ("train#trainer#max_epochs", "train#handlers"):
            overrides.pop(name, None)
        # The config parser takes a tuple as one value, so file names in it are never evaluated or looked up.
        overrides = {
            name: tuple(value) if isinstance(value, list) else value for name, value in overrides.items()
        }
        monai.bundle.run(
            run_id="run",
            meta_file=self.bundle_metadata_path,
            config_file=self.config_files,
            logging_file=False,  # type: ignore[arg-type]  # keeps MONAI Label's own logging
            **(overrides | self._settings_of_round(request, self.output_dir)),
        )

    def check(self, request: Mapping[str, Any]) -> None:
        """Refuses values that do not go together, by the rules of the round itself, before one begins.

        Args:
            request: settings that `check_values` let pass.

        Raises:
            SettingsError: naming the settings, their values, the rule and what to do.
            CheckpointError: if they describe another network than that of the model to start from.
        """
        settings = self._settings_of_round(request, self.root / "outputs" / "monailabel")
        parser = merge_configs(self.config_files)
        for name, value in settings.items():
            # a tuple is one value to the config parser, see `run_single_gpu`
            parser[name] = tuple(value) if isinstance(value, list) else value
        found = settings_of(parser)
        check_training_settings(found)
        if "init_from" in settings:
            check_network(self.model, {"network": read_settings(self.model)}, found)

    def _settings_of_round(self, request: Mapping[str, Any], output_dir: Path) -> dict[str, Any]:
        """Returns what a round sets in the config: values of the request, and its own paths."""
        given = {name: value for name, value in request.items() if name in self.settings}
        if request.get("pretrained", True) and self.model.is_file():
            network = read_settings(self.model)
            given = {name: network[name] for name in NETWORK_SETTINGS if name in network} | given
            given["init_from"] = plain_path_for_monai(str(self.model))
        paths = {"bundle_root": self.root, "output_dir": output_dir}
        return given | {name: plain_path_for_monai(str(path)) for name, path in paths.items()}

    def _fetch_datalist(self, request: Mapping[str, Any], datastore: Any) -> list[Case]:
        found = {name: datastore.get_image_uri(name) for name in sorted(datastore.list_images())}
        images = {name: path for name, path in found.items() if os.path.isfile(path)}
        for name in found.keys() - images.keys():
            logger.warning("%s: is no regular file (any more); it is left out", name)
        if not images:
            raise TrainingDataError(f"{datastore.name()}: holds no image; put volumes into `--studies`")
        patients = self._patients_of(images)
        return [{"image": path, "patient": patients[name]} for name, path in images.items()]

    def _patients_of(self, images: Mapping[str, str]) -> dict[str, str]:
        """Names the patient of each image: by the operator's list, else by the name of its file.

        Raises:
            TrainingDataError: if there is a list, and an image is not on it.
        """
        if not self.patients:
            return {name: patient_of_file(Path(path)) for name, path in images.items()}
        listed = {os.path.realpath(case["image"]): case["patient"] for case in find_cases(self.patients)}
        nameless = [name for name, path in images.items() if os.path.realpath(path) not in listed]
        if nameless:
            raise TrainingDataError(
                f"`patients`: {Path(self.patients).name} must name the patient of every image, got none for "
                f"{shown(nameless[0])} and {len(nameless) - 1} more; add them to the operator's list"
            )
        return {name: listed[os.path.realpath(path)] for name, path in images.items()}

    def _partition_datalist(
        self, datalist: list[Case], request: Mapping[str, Any], shuffle: bool = False
    ) -> tuple[list[Case], list[Case]]:
        """Splits by patient; the same patients always give the same split.

        Raises:
            SharedPatientsError: if there is one patient only, unless `allow_shared_patients` is set.
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
        """Does nothing: `init_from` loads strictly, while MONAI Label could keep random weights unnoticed."""


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
