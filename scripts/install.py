"""Installs a trained checkpoint as the bundle's model.

    python -m scripts.install outputs/vqgan_patches/checkpoints/best_1.pt

Keeps the generator and what it was built with, drops optimizers, discriminators and counters, and writes
`models/model.pt`, which inference, MONAI Label and other consumers of the bundle read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bundle.checkpoints.file import (
    NETWORK_SETTINGS,
    CheckpointError,
    CheckpointWriteError,
    load_generator,
    read_checkpoint,
    write_checkpoint,
)
from bundle.checkpoints.trained_on import without_patients
from bundle.networks.vqgan import build_vqgan
from bundle.run.console import tell
from bundle.run.record import run_script

WRITE_ADVICE = "make room or give another --output"
DEFAULT_OUTPUT = Path(__file__).resolve().parent.parent / "models" / "model.pt"


def install(checkpoint: Path, output: Path) -> None:
    """Writes the generator of `checkpoint` to `output`, replacing what is there.

    Args:
        checkpoint: file that training wrote.
        output: file to write; it holds `model`, `network` and, of the volumes it was trained on,
            fingerprints of their voxels: hashes of patients stay behind.

    Raises:
        CheckpointError: a file that is missing, damaged or foreign, or whose weights do not fit its network.
    """
    content = read_checkpoint(checkpoint)
    network = content["network"]
    missing = [name for name in NETWORK_SETTINGS if name not in network]
    if missing:
        raise CheckpointError(
            f"{checkpoint}: `network` must say {', '.join(missing)}; use a file of training"
        )
    try:
        generator = build_vqgan(network["preset"], network["quantizer"], network["num_embeddings"])
    except ValueError as error:
        raise CheckpointError(
            f"{checkpoint}: names a network that this version does not know: {error}"
        ) from error
    load_generator(generator, checkpoint, content)
    trained_on = without_patients(content.get("trained_on", {}))
    kept = {"model": content["model"], "network": network, "trained_on": trained_on}
    write_checkpoint(output, kept, WRITE_ADVICE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of this module; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.install", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("checkpoint", type=Path, help="file that training wrote, e.g. .../best_1.pt")
    parser.add_argument(
        "--output", type=Path, default=DEFAULT_OUTPUT, help="default: the bundle's models/model.pt"
    )
    given = parser.parse_args(arguments)
    try:
        install(given.checkpoint, given.output)
    except (CheckpointError, CheckpointWriteError) as error:
        tell(f"error: {error}", file=sys.stderr)
        return 1
    tell(f"installed {given.checkpoint} as {given.output}")
    # MONAI Label takes the .pt file with the shortest name in the folder, whatever it is.
    for other in given.output.parent.glob("[!.]*.pt"):
        if len(other.name) < len(given.output.name):
            tell(f"warning: {other} has a shorter name, MONAI Label would load it; move it", file=sys.stderr)
    return 0


if __name__ == "__main__":
    run_script(main)
