"""Draws quality against bits: models with more and fewer codes beside codecs at the same bits, on one volume.

    python -m scripts.developer.rate_distortion VOLUME --models A.pt B.pt --codecs jpeg2000 jpegxl hevc

Writes `rate_distortion.csv` and `rate_distortion.png` to `--output_dir`. Codecs get the bits that the models'
indices cost nominally, log2 K / stride^3 per voxel. Figures are those of configs/evaluate.yaml for the whole
volume.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure

from bundle.data.volumes.reading import read_ras
from bundle.evaluation.model import TrainedModel
from bundle.inferers.codecs import CODECS, compress
from bundle.metrics.codes import code_use, nominal_bits_per_voxel
from bundle.metrics.reconstruction import reconstruction_figures
from bundle.run.atomic import complete_or_absent, write_text
from bundle.run.console import CommandParser, tell
from bundle.run.record import run_script

HU_MIN, HU_MAX = -1000.0, 1000.0
ADVICE = "name another --output_dir"


class Point(NamedTuple):
    """One way to store the volume.

    Attributes:
        method: what stored it; points of one method are joined in the picture.
        codes: number of codes K of a model, 0 for a codec.
        bits_per_voxel: of a model nominal, of a codec those of its file.
        entropy_bits_per_voxel: of a model, what an entropy coder without context would reach; of a codec the
            same as `bits_per_voxel`.
        psnr: dB, whole volume.
        ssim: 2D, mean over axial slices.
    """

    method: str
    codes: int
    bits_per_voxel: float
    entropy_bits_per_voxel: float
    psnr: float
    ssim: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line of this module."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volume", type=Path, help="NIfTI file that no model was trained on")
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="checkpoints")
    parser.add_argument("--codecs", nargs="*", choices=CODECS, default=[])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/rate_distortion"))
    given = parser.parse_args(arguments)
    voxels = read_ras(given.volume).voxels
    models = [TrainedModel(path, progress=True) for path in given.models]
    points = []
    for point in measure(voxels, models, given.codecs):
        tell(
            f"{point.method:10} K {point.codes:5}  {point.bits_per_voxel:.3f} bit  {point.psnr:.2f} dB",
            flush=True,
        )
        points.append(point)
        write_text(given.output_dir / "rate_distortion.csv", as_csv(points))
    path = given.output_dir / "rate_distortion.png"
    with complete_or_absent(path, ADVICE) as unfinished:
        draw(points).savefig(unfinished, format="png", dpi=120)


def measure(voxels: np.ndarray, models: Sequence[TrainedModel], codecs: Sequence[str]) -> Iterator[Point]:
    """Stores a volume (X, Y, Z) int16 in HU in every way and yields what comes back."""
    bits = []
    for model in models:
        codes = int(model.settings["num_embeddings"])
        coded = model.reconstruct(voxels)
        bits.append(nominal_bits_per_voxel(codes, model.stride))
        entropy = code_use(np.bincount(coded.indices.ravel(), minlength=codes)).entropy_bits / model.stride**3
        method = f"{model.settings['preset']}, {model.settings['quantizer']}"
        yield Point(method, codes, bits[-1], entropy, *_figures(voxels, coded.recon))
    for codec in codecs:
        for target in sorted(set(bits)):
            result = compress(codec, voxels, HU_MIN, HU_MAX, target)
            spent = result.bits_per_voxel
            yield Point(codec, 0, spent, spent, *_figures(voxels, result.recon))


def as_csv(points: Sequence[Point]) -> str:
    """Returns the points as a table, one per line."""
    file = io.StringIO()
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(Point._fields)
    lines.writerows([*point[:2], *(f"{value:.4f}" for value in point[2:])] for point in points)
    return file.getvalue()


def draw(points: Sequence[Point]) -> Figure:
    """Draws PSNR and SSIM over bits per voxel, one line per method."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for number, metric in enumerate(("psnr", "ssim")):
        axes = figure.add_subplot(1, 2, number + 1)
        for method in dict.fromkeys(point.method for point in points):
            some = [point for point in points if point.method == method]
            some.sort(key=lambda point: point.bits_per_voxel)
            axes.plot(
                [point.bits_per_voxel for point in some],
                [getattr(point, metric) for point in some],
                "o-",
                label=method,
            )
            for point in some if some[0].codes else []:
                axes.annotate(
                    f"K {point.codes}", (point.bits_per_voxel, getattr(point, metric)), fontsize=7,
                    xytext=(0, 5), textcoords="offset points", ha="center",
                )  # fmt: skip
        axes.set(xlabel="bits per voxel", ylabel={"psnr": "PSNR, dB", "ssim": "SSIM 2D"}[metric])
        axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _figures(voxels: np.ndarray, recon: np.ndarray) -> tuple[float, float]:
    figures = reconstruction_figures(torch.from_numpy(voxels), torch.from_numpy(recon), HU_MIN, HU_MAX)
    return figures.psnr, figures.ssim


if __name__ == "__main__":
    run_script(main)
