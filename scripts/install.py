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

from bundle.checkpoint_file import CheckpointError, read_checkpoint, write_checkpoint
from bundle.networks.vqgan import build_vqgan

BUNDLE_ROOT = Path(__file__).resolve().parent.parent


def install(checkpoint: Path, output: Path) -> None:
    """Writes the generator of `checkpoint` to `output`, replacing what is there.

    Args:
        checkpoint: file that training wrote.
        output: file to write; it holds `model` and `network` only.

    Raises:
        CheckpointError: if the file is missing, damaged, foreign, or its weights do not fit the network it names.
    """
    content = read_checkpoint(checkpoint)
    network = content["network"]
    try:
        generator = build_vqgan(network["preset"], network["quantizer"], network["num_embeddings"])
        generator.load_state_dict(content["model"])
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{checkpoint}: weights do not fit the network it names, {network}") from error
    write_checkpoint(output, {"model": content["model"], "network": network})


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of this module; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.install", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="checkpoint that training wrote, e.g. .../best_1.pt")
    parser.add_argument(
        "--output", type=Path, default=BUNDLE_ROOT / "models" / "model.pt", help="default: models/model.pt"
    )
    given = parser.parse_args(arguments)
    try:
        install(given.checkpoint, given.output)
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"installed {given.checkpoint} as {given.output}")
    for other in _hiding_files(given.output):
        print(
            f"warning: MONAI Label would read {other} instead, its name is shorter; move it", file=sys.stderr
        )
    return 0


def _hiding_files(output: Path) -> list[Path]:
    """MONAI Label takes the file with the shortest name among the .pt files of the folder."""
    return [path for path in output.parent.glob("*.pt") if len(path.name) < len(output.name)]


if __name__ == "__main__":
    sys.exit(main())
