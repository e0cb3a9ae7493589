"""Reconstructs CT volumes with a trained checkpoint and shows how close they come to the original.

    python -m scripts.reconstruct --ckpt_path FILE --input VOLUME --output_dir OUT [--compare FILE2]

It writes the same NIfTI as `monai.bundle run --config_file configs/inference.yaml`, and beside it figures
(.json), a picture (.png) and a video per axis (.mp4). `--compare` adds a second checkpoint, e.g. one that was
trained with discriminators; its volumes go to OUT/compare. From another folder:
`python BUNDLE/scripts/reconstruct.py ...`.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:
    # Started as a file, Python looks beside it first: a scripts/inspect.py would hide the standard module.
    sys.path.pop(0)
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from monai.bundle import ConfigWorkflow

from bundle.checkpoints.file import NETWORK_SETTINGS, CheckpointError, read_settings
from bundle.checkpoints.start import settings_of
from bundle.data.cases.split import dataset_root, inference_cases
from bundle.drawing.planes import PLANES, WINDOWS, HUWindow
from bundle.drawing.triptych import DIFFERENCE_HU
from bundle.drawing.video import Display
from bundle.run import names
from bundle.run.command import plain_path_for_monai
from bundle.run.console import CommandParser, tell
from bundle.run.record import run_script
from scripts.case_report import CaseFigures, figures_table, report_case

BUNDLE_ROOT = Path(__file__).resolve().parent.parent
COMPARE_FOLDER = "compare"


def main(arguments: Sequence[str] | None = None) -> list[CaseFigures]:
    """Runs the command line of this module; returns the figures of every case.

    Raises:
        CheckpointError: if a checkpoint is missing or unusable, or two have different HU windows.
        DatasetError: if the input is missing or unusable.
    """
    given = _parse(arguments)
    checkpoints = [given.ckpt_path] + ([given.compare] if given.compare else [])
    settings = [_network_settings(path, given) for path in checkpoints]
    hu_min, hu_max = (settings[0][end] for end in ("hu_min", "hu_max"))
    if any((other["hu_min"], other["hu_max"]) != (hu_min, hu_max) for other in settings):
        raise CheckpointError(
            f"{given.compare}: was trained with another HU window than {given.ckpt_path}, so their figures "
            "cannot be compared; take two checkpoints with one window"
        )
    cases = [Path(case["image"]) for case in inference_cases(given.input)]
    folders = [given.output_dir, given.output_dir / COMPARE_FOLDER][: len(checkpoints)]
    for path, network, folder in zip(checkpoints, settings, folders, strict=True):
        run_inference(given.input, path, folder, network | _tiling(given))
    labels = checkpoint_labels(checkpoints)
    window = HUWindow("Window", *given.hu_window) if given.hu_window else WINDOWS[given.window]
    display = Display(window, given.difference_hu, hu_min, hu_max)
    root = Path(dataset_root(given.input))
    figures = []
    for image in cases:
        recons = {
            label: folder / output_name(image, root) for label, folder in zip(labels, folders, strict=True)
        }
        figures.append(report_case(image, recons, given.axes, given.fps, display))
    tell(figures_table(figures, hu_min, hu_max))
    tell(f"NIfTI, figures, pictures and videos: {given.output_dir}")
    return figures


def run_inference(dataset_dir: Path, ckpt_path: Path, output_dir: Path, overrides: Mapping[str, Any]) -> None:
    """Runs `configs/inference.yaml`, as `python -m monai.bundle run` does.

    Args:
        dataset_dir: folder of NIfTI volumes, one NIfTI file, or a datalist .json.
        ckpt_path: checkpoint to load.
        output_dir: folder of the reconstructed volumes.
        overrides: further ids of the config by name.
    """
    workflow = ConfigWorkflow(
        config_file=str(BUNDLE_ROOT / "configs" / "inference.yaml"),
        workflow_type="infer",
        bundle_root=plain_path_for_monai(str(BUNDLE_ROOT)),
        dataset_dir=plain_path_for_monai(str(dataset_dir)),
        ckpt_path=plain_path_for_monai(str(ckpt_path)),
        output_dir=plain_path_for_monai(str(output_dir)),
        **overrides,
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    # the next checkpoint needs the memory of this network
    del workflow
    gc.collect()
    torch.cuda.empty_cache()


def output_name(image: Path, root: Path) -> Path:
    """Returns where inference writes the reconstruction of `image`, relative to its output folder."""
    name = names.output_name(image, root)
    return name.with_name(f"{name.name}_recon.nii.gz")


def checkpoint_labels(checkpoints: Sequence[Path]) -> list[str]:
    """Names the checkpoints by run and file, e.g. `vqgan_patches/last.pt`, each uniquely."""
    labels = []
    for path in checkpoints:
        folder = path.resolve().parent
        run = folder.parent if folder.name == "checkpoints" else folder
        label = f"{run.name}/{path.name}"
        labels.append(label if label not in labels else f"{label} (second)")
    return labels


def _network_settings(path: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Reads the checkpoint's settings; refuses settings that differ, and a file that does not exist."""
    read_settings(path)
    return settings_of(path, *(getattr(given, name) for name in NETWORK_SETTINGS))


def _tiling(given: argparse.Namespace) -> dict[str, Any]:
    overrides = {
        name: getattr(given, name) for name in ("halo", "num_workers") if getattr(given, name) is not None
    }
    if given.tile_size:
        overrides["tile_size"] = given.tile_size[0] if len(given.tile_size) == 1 else given.tile_size
    if given.device:
        overrides["device"] = f"$torch.device('{given.device}')"
    return overrides


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.hu_window and not given.hu_window[1] > 0:
        parser.error(f"the WIDTH of `hu_window` must be above 0, got {given.hu_window[1]:g}; give HU")
    if given.output_dir.resolve().is_relative_to(given.input.resolve()):
        parser.error(
            f"`output_dir` must lie outside the input folder, got {given.output_dir} in {given.input}; "
            "the next run would take results for inputs"
        )
    return given


def _parser() -> CommandParser:
    parser = CommandParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--ckpt_path", type=Path, required=True, help="checkpoint of a training run, or an installed model")
    add(
        "--input",
        type=Path,
        required=True,
        help="a NIfTI volume, a DICOM series, a folder of them, or a datalist .json",
    )
    add("--output_dir", type=Path, required=True, help="folder of all results")
    add("--compare", type=Path, metavar="CKPT_PATH", help="second checkpoint, shown beside the first")
    add("--axes", nargs="*", choices=PLANES, default=list(PLANES), help="videos to make; default: all three")
    add("--fps", type=_positive, default=10, help="slices per second; default: 10")
    add("--window", choices=WINDOWS, default="pe", help="HU window of the videos; default: pe (100, 700)")
    add("--hu_window", nargs=2, type=float, metavar=("LEVEL", "WIDTH"), help="another HU window, instead")
    add("--difference_hu", type=_positive, default=DIFFERENCE_HU, help="HU at the ends of the colour bar")
    add(
        "--tile_size",
        type=int,
        nargs="+",
        help="voxels per axis of a tile, one or three numbers; default: slabs",
    )
    add(
        "--halo", type=int, help="voxels of context around a tile; default: the network's own, which is exact"
    )
    add("--device", type=torch.device, help="e.g. cpu or cuda:0; default: a GPU if there is one")
    add("--num_workers", type=int, help="data loading processes")
    network = parser.add_argument_group("network", "read from the checkpoint unless given")
    network.add_argument("--preset", choices=("default", "large", "lite"))
    network.add_argument("--quantizer")
    network.add_argument("--num_embeddings", type=int)
    network.add_argument("--hu_min", type=float, help="HU window of training")
    network.add_argument("--hu_max", type=float)
    return parser


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


if __name__ == "__main__":
    run_script(main)
