"""Tells whether a grid in a reconstruction comes from the network or from the volume itself.

    python -m scripts.developer.grid_by_shift VOLUME --model models/model.pt --axis z

A network draws its grid at fixed places of its own lattice. So the volume is reconstructed four times, each
time without one slice more at its start; that shifts the lattice by one voxel. In the mean of the four, laid
over each other, the network's grid is gone, and in what each differs from the mean it stands alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bundle.data.volumes.reading import read_ras
from bundle.evaluation.model import TrainedModel
from bundle.metrics.grid import MIN_SIDE, grid_score
from bundle.run.console import CommandParser, tell
from bundle.run.record import run_script

AXES = "xyz"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line of this module."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volume", type=Path, help="NIfTI file, or folder of a DICOM series")
    parser.add_argument("--model", type=Path, required=True, help="checkpoint")
    parser.add_argument("--axis", choices=AXES, default="z", help="along which to shift and to score")
    given = parser.parse_args(arguments)
    tell("\n".join(compare_shifts(read_ras(given.volume).voxels, given.model, AXES.index(given.axis))))


def compare_shifts(voxels: np.ndarray, ckpt_path: Path, axis: int) -> list[str]:
    """Scores a volume, its shifted reconstructions, their mean, and what each differs from it.

    Args:
        voxels: (X, Y, Z) int16 in HU.
        ckpt_path: checkpoint of the network.
        axis: along which to shift and to score, long enough for a score.

    Returns:
        lines of text.
    """

    def score(volume: np.ndarray) -> str:
        return f"{grid_score(torch.from_numpy(np.ascontiguousarray(volume)), axes=[axis]):.2f}"

    model, length = TrainedModel(ckpt_path), voxels.shape[axis]
    common = length - model.stride
    if common < MIN_SIDE:
        raise SystemExit(
            f"`--axis` must have at least {MIN_SIDE + model.stride} voxels, got {length}; choose another"
        )
    lines, shifted = [f"original: {score(voxels)}"], []
    for shift in range(model.stride):
        rest = np.ascontiguousarray(voxels.take(range(shift, length), axis))
        recon = model.reconstruct(rest).recon
        shifted.append(
            recon.take(range(recon.shape[axis] - common, recon.shape[axis]), axis).astype(np.float32)
        )
        lines.append(f"reconstruction without {shift} slices at its start: {score(shifted[-1])}")
    mean = np.mean(shifted, axis=0)
    differences = ", ".join(score(one - mean) for one in shifted)
    return [*lines, f"mean of these: {score(mean)}", f"differences from the mean: {differences}"]


if __name__ == "__main__":
    run_script(main)
