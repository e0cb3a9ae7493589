"""Installs a trained checkpoint as the bundle's model.

    python -m scripts.install outputs/vqgan_patches/checkpoints/best_1.pt

It keeps the generator and its settings, drops optimizers, discriminators and counters, and writes
`models/model.pt`, which inference, MONAI Label and other users of the bundle read. This replaces the model
that ships; `git checkout models` brings that back.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from bundle.checkpoints.file import (
    INSTALLED_MODEL,
    LONGEST_NAME,
    CheckpointError,
    CheckpointWriteError,
    load_generator,
    read_checkpoint,
    settings_in,
    write_checkpoint,
)
from bundle.checkpoints.trained_on import without_patients
from bundle.networks.vqgan import VQGAN, build_vqgan
from bundle.run.console import CommandParser, tell
from bundle.run.record import run_script

WRITE_ADVICE = "make room or give another --output"


def install(checkpoint: Path, output: Path, name: str | None = None, half: bool = False) -> None:
    """Writes the generator of `checkpoint` to `output`, replacing what is there.

    Args:
        checkpoint: file that training wrote.
        output: file to write. It holds `model`, `network`, `recipe`, and fingerprints of the voxels it was
            trained on; hashes of patients are left out.
        name: programs print it when they use the model.
        half: whether to store the weights in half precision, at half the size.

    Raises:
        CheckpointError: if the file is missing, damaged or foreign, or its weights do not fit its network.
    """
    content = read_checkpoint(checkpoint)
    network = settings_in(checkpoint, content)
    try:
        generator = build_vqgan(network["preset"], network["quantizer"], network["num_embeddings"])
    except ValueError as error:
        raise CheckpointError(
            f"{checkpoint}: names a network that this version does not know: {error}"
        ) from error
    load_generator(generator, checkpoint, content)
    trained_on = without_patients(content.get("trained_on", {}))
    model = _halved(content["model"], generator) if half else content["model"]
    kept = {"model": model, "network": network, "trained_on": trained_on}
    kept |= {"recipe": content["recipe"]} if "recipe" in content else {}
    kept |= {"name": name} if name else {}
    write_checkpoint(output, kept, WRITE_ADVICE)


def _halved(model: Mapping[str, Tensor], generator: VQGAN) -> dict[str, Tensor]:
    """Rounds parameters to half precision; the codebook, which is a buffer, stays as it is."""
    parameters = dict(generator.named_parameters())
    return {key: value.half() if key in parameters else value for key, value in model.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line of this module; returns the exit code."""
    parser = CommandParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="file that training wrote, e.g. .../best_1.pt")
    parser.add_argument(
        "--output", type=Path, default=INSTALLED_MODEL, help="default: the bundle's models/model.pt"
    )
    parser.add_argument("--name", type=_name, help="which programs print when they use the model")
    parser.add_argument("--half", action="store_true", help="store weights in half precision")
    given = parser.parse_args(arguments)
    try:
        install(given.checkpoint, given.output, given.name, given.half)
    except (CheckpointError, CheckpointWriteError) as error:
        tell(f"error: {error}", file=sys.stderr)
        return 1
    tell(f"installed {given.checkpoint} as {given.output}")
    # MONAI Label takes the .pt file with the shortest name in the folder, whatever it is.
    for other in given.output.parent.glob("[!.]*.pt"):
        if len(other.name) < len(given.output.name):
            tell(f"warning: {other} has a shorter name, MONAI Label would load it; move it", file=sys.stderr)
    return 0


def _name(text: str) -> str:
    if not text.isprintable() or not 0 < len(text) <= LONGEST_NAME:
        raise argparse.ArgumentTypeError(
            f"must be one line of 1 to {LONGEST_NAME} characters, got {text!r:.200}"
        )
    return text


if __name__ == "__main__":
    run_script(main)
