"""Trains a base, and two arms that go on from it with and without discriminators; one command per step.

    python -m scripts.developer.shipped_model STEP --data DIR --output_dir OUT

Steps, in their order: `base`, then `control` and `adversarial` (both go on from the base, with the same
patches), `evaluate`, `compare`. `codes` goes on from the base as `control` does, with another number of
codes (`--num_embeddings`). A step that was stopped goes on where it was. DIR holds the volumes that are
listed below; models/MODEL_CARD.md says where they come from, and which steps made the models that ship.
LIDC-IDRI-0001 is the test: no step trains on it.

Recipes are compared by arms of their own, for example
`adversarial --arm less_matching --epochs 1 --set gan_feat_weight=0.03`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bundle.checkpoints.file import read_checkpoint, write_checkpoint
from bundle.networks.vqgan import build_vqgan
from bundle.run.atomic import write_text
from bundle.run.console import CommandParser, tell
from bundle.run.record import run_script

BUNDLE_ROOT = Path(__file__).resolve().parent.parent.parent
TRAINING = ("lidc_idri_0314", "lung_dx_a0001_B", "nsclc_rg_r01_001", "qin_lsc_0003", "qin_lung_01_0013")
DEVELOPMENT = ("qin_lsc_0028", "lungfcp_01_0001")
"""Patients that choose recipes; no weights see them."""
TEST = ("lidc_idri_0001",)
ARMS = ("base", "control", "adversarial")
ITERATIONS = {"base": 6000, "control": 1000, "adversarial": 1000, "codes": 1000}
EPOCH_LENGTH = 500
COMMON = {
    "preset": "lite",
    "num_embeddings": 1024,
    "patch_size": "[64,64,64]",
    "batch_size": 2,
    "micro_batch_size": 2,
    "learning_rate": 7e-4,
    "vessel_ratio": 0.2,
    "epoch_length": EPOCH_LENGTH,
    "val_interval": 3,
    "checkpoint_interval": 100,
    "num_workers": 0,
    "amp_on_cpu": True,
    "resume_from_checkpoint": "auto",
}
ADVERSARIAL = {"discriminator_iter_start": 0, "perceptual_network": "squeeze"}
"""Besides `configs/train_with_discriminator.yaml`: from the first iteration on, and a backbone for CPUs."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line of this module."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=(*ITERATIONS, "evaluate", "compare"))
    parser.add_argument("--data", type=Path, required=True, help="folder with the NIfTI volumes")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1234, help="of the arms; the base has the default")
    parser.add_argument("--num_embeddings", type=int, default=1024, help="number of codes, for `codes`")
    parser.add_argument("--arm", help="folder of this training in OUT; the step's name if not given")
    parser.add_argument("--epochs", type=int, help=f"of {EPOCH_LENGTH} iterations, if not the step's own")
    parser.add_argument("--set", nargs="+", default=[], metavar="ID=VALUE", help="settings of this arm")
    parser.add_argument(
        "--perceptual_weights_path", type=Path, help="file of the LPIPS backbone SqueezeNet 1.1"
    )
    given = parser.parse_args(arguments)
    data, output_dir = given.data.resolve(), given.output_dir.resolve()
    if given.step == "compare":
        compare(output_dir)
    elif given.step == "evaluate":
        for arm in ARMS:
            evaluate(arm, data, output_dir, given.perceptual_weights_path)
    else:
        train(given, data, output_dir)


def train(given: argparse.Namespace, data: Path, output_dir: Path) -> None:
    """Trains the base, or an arm that goes on from it."""
    datalist = output_dir / "datalist.json"
    write_text(
        datalist, json.dumps({"training": _cases(data, TRAINING), "validation": _cases(data, DEVELOPMENT)})
    )
    configs = ["configs/train.yaml"]
    settings: dict[str, object] = dict(COMMON)
    arm = given.step
    base = _checkpoint(output_dir, "base")
    if given.step != "base":
        settings |= {"val_interval": 1, "init_from": base, "seed": given.seed}
    if given.step == "adversarial":
        configs.append("configs/train_with_discriminator.yaml")
        settings |= ADVERSARIAL | {"perceptual_weights_path": given.perceptual_weights_path}
    elif given.step == "codes":
        codes = given.num_embeddings
        arm = f"codes_{codes}"
        start = start_with_other_codes(base, codes, output_dir / f"start_{codes}.pt")
        settings |= {"init_from": start, "num_embeddings": codes}
    settings |= {
        "max_epochs": given.epochs or ITERATIONS[given.step] // EPOCH_LENGTH,
        "dataset_dir": datalist,
        "cache_dir": output_dir / "cache",
        "output_dir": output_dir / (given.arm or arm),
    }
    settings |= dict(one.split("=", 1) for one in given.set)
    run("monai.bundle", "run", "--config_file", str(configs), **settings)


def start_with_other_codes(base: Path, num_embeddings: int, path: Path) -> Path:
    """Writes a checkpoint of the base's encoder and decoder; the first batch will fill its codebook."""
    content = read_checkpoint(base)
    settings = content["network"] | {"num_embeddings": num_embeddings}
    fresh = build_vqgan(settings["preset"], settings["quantizer"], num_embeddings).state_dict()
    model = {
        name: value if name.startswith("quantizer.") else content["model"][name]
        for name, value in fresh.items()
    }
    write_checkpoint(path, {"model": model, "network": settings, "trained_on": content["trained_on"]})
    return path


def evaluate(arm: str, data: Path, output_dir: Path, perceptual_weights: Path | None) -> None:
    """Scores an arm on the patients that it has not seen; on LIDC-IDRI-0001 too if it lies in DIR."""
    patients = [*DEVELOPMENT, *(name for name in TEST if _volume(data, name).exists())]
    datalist = output_dir / "evaluated.json"
    cases = [{**case, "patient": name} for case, name in zip(_cases(data, patients), patients, strict=True)]
    write_text(datalist, json.dumps({"testing": cases}))
    run(
        "monai.bundle", "run", "--config_file", "configs/evaluate.yaml", dataset_dir=datalist,
        ckpt_path=_checkpoint(output_dir, arm), output_dir=output_dir / f"evaluation_{arm}",
        perceptual_network="squeeze", perceptual_weights_path=perceptual_weights,
    )  # fmt: skip


def compare(output_dir: Path) -> None:
    """Gives the verdict on the discriminators."""
    folders = {name: output_dir / f"evaluation_{name}" for name in ARMS}
    run(
        "scripts.compare", base=folders["base"], other=folders["adversarial"], control=folders["control"],
        output_dir=output_dir / "comparison",
    )  # fmt: skip


def run(*words: str, **settings: object) -> None:
    """Prints a command as a user would type it and runs it from the bundle's root; ends where it fails."""
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    tell(f"$ {shlex.join(['python', '-m', *words, *options])}", flush=True)
    result = subprocess.run(
        [sys.executable, "-W", "ignore::UserWarning", "-m", *words, *options], cwd=BUNDLE_ROOT
    )
    if result.returncode:
        sys.exit(result.returncode)


def _cases(data: Path, patients: Sequence[str]) -> list[dict[str, str]]:
    return [{"image": str(_volume(data, name))} for name in patients]


def _volume(data: Path, patient: str) -> Path:
    return data / f"{patient}.nii.gz"


def _checkpoint(output_dir: Path, arm: str) -> Path:
    return output_dir / arm / "checkpoints" / "last.pt"


if __name__ == "__main__":
    run_script(main)
