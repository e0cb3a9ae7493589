"""Shows the main job on real CT in five minutes: trains on the embedded crop, reconstructs, and compares.

    python -m scripts.demo [--output_dir outputs/demo]

It trains `configs/train.yaml` + `train_with_discriminator.yaml` + `smoke.yaml` on one part of a CT of
LIDC-IDRI-0001. Then it reconstructs the other part through `python -m monai.bundle run`, with the checkpoint
just trained and with the model that ships, which has never seen this patient. It leaves figures, a picture
and videos of both. Every step is a command that a user could type; it is printed before it runs.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bundle.checkpoints.file import INSTALLED_MODEL
from bundle.drawing.planes import EMBOLISM, PLANES
from bundle.drawing.triptych import DIFFERENCE_HU
from bundle.drawing.video import Display
from bundle.run.console import CommandParser, tell
from bundle.run.record import run_script
from scripts.case_report import figures_table, report_case
from scripts.reconstruct import output_name

BUNDLE_ROOT = Path(__file__).resolve().parent.parent
DATA = Path("tests/data")
VALIDATION = DATA / "lidc_idri_0001_validation.nii.gz"
SHORT, SHIPPED = "five_minutes_of_training", "shipped_model"
"""Folders of the two reconstructions, and their names in pictures and figures."""


class DemoError(RuntimeError):
    """A step of the demo that failed; its own output is above."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line of this module."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=BUNDLE_ROOT / "outputs" / "demo")
    output_dir = parser.parse_args(arguments).output_dir.resolve()
    start = time.monotonic()
    set_aside(output_dir)
    train(output_dir)
    checkpoints = {SHORT: output_dir / "checkpoints" / "last.pt", SHIPPED: INSTALLED_MODEL}
    for folder, checkpoint in checkpoints.items():
        reconstruct(checkpoint, output_dir / folder)
    picture = report(list(checkpoints), output_dir)
    tell(f"Took {time.monotonic() - start:.0f} s. Everything is in {output_dir}")
    tell(f"Open {picture}")


def set_aside(output_dir: Path) -> None:
    """Moves an earlier demo to the next free name; it is not deleted."""
    if not output_dir.exists():
        return
    number = next(n for n in range(1, 10_000) if not output_dir.with_name(f"{output_dir.name}-{n}").exists())
    aside = output_dir.with_name(f"{output_dir.name}-{number}")
    output_dir.rename(aside)
    tell(f"The earlier demo is now in {aside}")


def train(output_dir: Path) -> None:
    """Trains on the training part: warm-up, opening of the gate, adversarial phase."""
    configs = [f"configs/{name}.yaml" for name in ("train", "train_with_discriminator", "smoke")]
    run_bundle(str(configs), dataset_dir=DATA / "datalist.json", output_dir=output_dir)


def reconstruct(checkpoint: Path, output_dir: Path) -> None:
    """Reconstructs the validation part, which was not trained on, to a NIfTI in HU."""
    run_bundle("configs/inference.yaml", dataset_dir=VALIDATION, ckpt_path=checkpoint, output_dir=output_dir)


def run_bundle(config_file: str, **overrides: object) -> None:
    """Runs a config as a user does, from the bundle's root.

    Raises:
        DemoError: if it fails.
    """
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", config_file]
    for name, value in overrides.items():
        command += [f"--{name}", str(value)]
    tell(f"\n$ {shlex.join(['python', *command[1:]])}", flush=True)
    # MONAI warns at every start that configs are code; these are this project's own
    result = subprocess.run([command[0], "-W", "ignore::UserWarning", *command[1:]], cwd=BUNDLE_ROOT)
    if result.returncode:
        raise DemoError(f"{config_file}: the run failed with exit code {result.returncode}; see above")


def report(folders: Sequence[str], output_dir: Path) -> Path:
    """Prints figures, writes pictures and a video per plane; returns the path of the picture."""
    name = output_name(BUNDLE_ROOT / VALIDATION, BUNDLE_ROOT / DATA)
    recons = {folder.replace("_", " "): output_dir / folder / name for folder in folders}
    hu_min, hu_max = -1000.0, 1000.0
    display = Display(EMBOLISM, DIFFERENCE_HU, hu_min, hu_max)
    case = report_case(BUNDLE_ROOT / VALIDATION, recons, list(PLANES), 10, display)
    tell("\n" + figures_table([case], hu_min, hu_max))
    drawn = next((output_dir / folders[0]).glob("*_comparison.png"))
    return Path(shutil.copy(drawn, output_dir / "picture.png"))


if __name__ == "__main__":
    run_script(main)
