"""Installs the checkpoint of a training round as the served model."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bundle.checkpoints.file import read_checkpoint
from bundle.run.atomic import complete_or_absent
from scripts.install import install

logger = logging.getLogger(__name__)

# The weights of the terms that the gate opens, as in `gate` of the checkpoint handler in train.yaml.
GATED_WEIGHTS = ("image_gan_weight", "video_gan_weight", "perceptual_weight")


def result_of_round(output_dir: Path, settings: Mapping[str, Any]) -> Path:
    """Returns the best checkpoint of a round; for an adversarial round, the best one behind the gate.

    `val/psnr` falls when the gate opens, and a checkpoint from before that is only the base model. Training
    ranks checkpoints behind the gate first, but a round may end without a validation there.

    Args:
        output_dir: of the finished run.
        settings: its top-level settings.
    """
    best, last = (output_dir / "checkpoints" / name for name in ("best_1.pt", "last.pt"))
    if not best.is_file():
        return last
    gate = settings["discriminator_iter_start"] + settings["discriminator_pretrain_iters"]
    is_gated = any(settings[name] > 0 for name in GATED_WEIGHTS)
    return last if is_gated and read_checkpoint(best)["trainer"]["iteration"] <= gate else best


def install_round(output_dir: Path, settings: Mapping[str, Any], model: Path) -> Path:
    """Puts the round's checkpoint into `model` in one step, and keeps the previous model beside it.

    Args:
        output_dir: of the finished run.
        settings: its top-level settings.
        model: the file that the server reads.

    Returns:
        the checkpoint.
    """
    trained = result_of_round(output_dir, settings)
    if model.is_file():
        with complete_or_absent(model.with_name("model_before_training.pt")) as copy:
            shutil.copyfile(model, copy)
    install(trained, model)
    logger.info("installed %s as %s", trained, model)
    return trained
