"""Computes all figures of one reconstruction of one volume."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from bundle.data.volumes.reading import RASVolume
from bundle.emboli.chest import WALL_STEP_MM, Chest, Tissue
from bundle.emboli.inserted import CONTRASTS, Change
from bundle.emboli.invented import FalseEmbolus, find_false_emboli
from bundle.emboli.readings import Reading, all_clot_figures, read_emboli
from bundle.metrics.grid import MIN_SIDE, grid_score
from bundle.metrics.perceptual import LPIPS_SLICES, slice_lpips
from bundle.metrics.reconstruction import reconstruction_figures
from bundle.metrics.regions import region_errors
from bundle.metrics.seams import seam_score
from bundle.metrics.sharpness import edge_width, gradient_ratio
from bundle.metrics.similarity import MS_SSIM_SIDE, ms_ssim_2d, ssim_3d
from bundle.metrics.texture import BANDS, NoiseSpectrum, noise_spectrum
from bundle.reports.rows import REGIONS, WHOLE, Row

EVEN_OFF_WALL_MM = 2.0
NO_CONTRAST = "no contrast agent was found"
MIN_SLICES = 7

Inserted = Callable[[float, int], np.ndarray | None]
"""Takes contrast and parity; returns the reconstruction of the volume with these emboli, or None."""


@dataclass(frozen=True)
class Judge:
    """Settings of all volumes of an evaluation.

    Attributes:
        hu_min: lower end of the HU window of the figures.
        hu_max: upper end.
        tile_size: edge of the tiles whose seams are looked for, in voxels; None leaves `seam_score` out.
        perceptual: LPIPS; None leaves it out.
        perceptual_note: why there is none.
    """

    hu_min: float
    hu_max: float
    tile_size: int | Sequence[int] | None = None
    perceptual: nn.Module | None = None
    perceptual_note: str = ""


@dataclass
class Findings:
    """All that was measured on one reconstruction of one volume.

    Attributes:
        figures: region, metric, value, low, high, n, note.
        readings: of the inserted emboli.
        false_emboli: spots that the reconstruction invented.
        spectrum: noise of both; None where there is no even tissue.
        slice_rmse_hu: (Z,) of axial slices, inside the window.
    """

    figures: list[tuple[str, str, float, float, float, int, str]] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    false_emboli: list[FalseEmbolus] = field(default_factory=list)
    spectrum: NoiseSpectrum | None = None
    slice_rmse_hu: np.ndarray = field(default_factory=lambda: np.empty(0))

    def add(self, region: str, metric: str, value: float, note: str = "", n: int = 1) -> None:
        """Adds one figure without an interval; a value that cannot be measured needs a note."""
        note = note if math.isnan(value) else ""
        self.figures.append((region, metric, value, math.nan, math.nan, n, note))


def judge(
    original: RASVolume,
    recon: np.ndarray,
    chest: Chest,
    changes: Sequence[Change],
    inserted: Inserted,
    settings: Judge,
) -> Findings:
    """Computes all figures of a reconstruction.

    Args:
        original: the volume.
        recon: (X, Y, Z) int16 in HU.
        chest: tissues of the original.
        changes: emboli that can be inserted; none leave the clot figures empty.
        inserted: gives reconstructions with emboli.
        settings: window and the like.
    """
    found = Findings()
    _add_errors(found, original, recon, chest, settings)
    _add_similarity(found, original, recon, settings)
    _add_texture(found, original, recon, chest, settings)
    _add_false_emboli(found, original, recon, chest)
    _add_emboli(found, original, recon, changes, inserted)
    return found


def _add_errors(
    found: Findings, original: RASVolume, recon: np.ndarray, chest: Chest, settings: Judge
) -> None:
    window = settings.hu_min, settings.hu_max
    whole = reconstruction_figures(*_tensors(original, recon), *window)
    for metric in ("psnr", "mae_hu", "rmse_hu"):
        found.add(WHOLE, metric, getattr(whole, metric), n=whole.n_voxels)
    found.add(WHOLE, "ssim_2d", whole.ssim, n=original.voxels.shape[2])
    regions = {WHOLE: tuple(Tissue)} | REGIONS
    errors = region_errors(original.voxels, recon, chest.tissue, regions, *window)
    found.add(WHOLE, "bias_hu", errors[WHOLE].bias_hu, n=whole.n_voxels)
    for region in REGIONS:
        one = errors[region]
        note = NO_CONTRAST if region == "vessel" else "no voxel of this tissue was found"
        for metric in ("mae_hu", "bias_hu", "rmse_hu"):
            found.add(region, metric, getattr(one, metric), note, one.n_voxels)
    found.slice_rmse_hu = np.array(
        [
            math.sqrt(np.mean((a[..., z].astype(np.float64).clip(*window) - b[..., z].clip(*window)) ** 2))
            for a, b in [(original.voxels, recon)]
            for z in range(recon.shape[2])
        ]
    )


def _add_similarity(found: Findings, original: RASVolume, recon: np.ndarray, settings: Judge) -> None:
    window = settings.hu_min, settings.hu_max
    pair = _tensors(original, recon)
    shape = original.voxels.shape
    found.add(
        WHOLE, "ssim_3d", ssim_3d(*pair, *window), f"{shape[2]} slices, at least {MIN_SLICES} are needed"
    )
    small = f"slices of {shape[0]} x {shape[1]}, at least {MS_SSIM_SIDE} x {MS_SSIM_SIDE} are needed"
    found.add(WHOLE, "ms_ssim_2d", ms_ssim_2d(*pair, *window), small)
    lpips = math.nan
    if settings.perceptual is not None:
        lpips = slice_lpips(settings.perceptual, *(_scaled_slices(volume, window) for volume in pair))
    found.add(WHOLE, "lpips", lpips, settings.perceptual_note)


def _scaled_slices(volume: torch.Tensor, window: tuple[float, float]) -> torch.Tensor:
    """Returns at most 16 axial slices, evenly spread, (1, X, Y, n) in [-1, 1]."""
    n = min(LPIPS_SLICES, volume.shape[2])
    slices = volume[..., torch.linspace(0, volume.shape[2] - 1, n).round().long()].float().clamp(*window)
    return slices.sub_(sum(window) / 2).div_((window[1] - window[0]) / 2)[None]


def _add_texture(
    found: Findings, original: RASVolume, recon: np.ndarray, chest: Chest, settings: Judge
) -> None:
    spectrum, note = None, NO_CONTRAST
    if chest.lumen is not None:
        even = chest.lumen.wall >= round(EVEN_OFF_WALL_MM / WALL_STEP_MM)
        box = chest.lumen.box
        spectrum = noise_spectrum(original.voxels[box], recon[box], even, original.spacing_mm)
        note = "no square of even blood, or no noise in it"
    found.spectrum = spectrum
    n = spectrum.n_squares if spectrum else 0
    for band in BANDS:
        found.add(WHOLE, f"nps_ratio_{band}", spectrum.nps_ratio[band] if spectrum else math.nan, note, n)
    found.add(WHOLE, "noise_sd_ratio", spectrum.noise_sd_ratio if spectrum else math.nan, note, n)
    window = settings.hu_min, settings.hu_max
    steep = gradient_ratio(original.voxels, recon, chest.tissue, original.spacing_mm, *window)
    found.add(WHOLE, "gradient_ratio", steep, "no body was found, or it is flat")
    edges = edge_width(original.voxels, recon, chest.tissue == Tissue.LUNG, original.spacing_mm)
    for metric, value in zip(
        ("edge_width_mm", "edge_width_original_mm"),
        (edges.recon_mm, edges.original_mm) if edges else (math.nan, math.nan),
        strict=True,
    ):
        found.add("lung", metric, value, "no wall of a lung was found", edges.n_edges if edges else 0)
    seams, note = math.nan, "`tile_size` is not given"
    if settings.tile_size is not None:
        seams = seam_score(*_tensors(original, recon), settings.tile_size, *window)
        note = "no plane between tiles lies far enough inside the volume, or the original is flat there"
    found.add(WHOLE, "seam_score", seams, note)
    short = f"every axis is shorter than {MIN_SIDE} voxels"
    found.add(WHOLE, "grid", grid_score(torch.from_numpy(recon)), short)


def _add_false_emboli(found: Findings, original: RASVolume, recon: np.ndarray, chest: Chest) -> None:
    count = math.nan
    if chest.lumen is not None:
        found.false_emboli = find_false_emboli(original.voxels, recon, original.spacing_mm, chest.lumen)
        count = float(len(found.false_emboli))
    found.add("vessel", "false_emboli", count, NO_CONTRAST)


def _add_emboli(
    found: Findings,
    original: RASVolume,
    recon: np.ndarray,
    changes: Sequence[Change],
    inserted: Inserted,
) -> None:
    n_missing = 0
    for contrast in CONTRASTS:
        for parity in (0, 1):
            recon_with = inserted(contrast, parity) if changes else None
            if recon_with is None:
                n_missing += 1
                continue
            found.readings += read_emboli(
                original.voxels, recon, recon_with, changes, contrast, parity, original.spacing_mm
            )
    for region, figure in all_clot_figures(found.readings):
        note = figure.note
        if not changes:
            note = NO_CONTRAST
        elif n_missing and math.isnan(figure.value) and note:
            note = f"{n_missing} of 4 reconstructions with emboli are not given"
        found.figures.append((region, figure.metric, figure.value, figure.low, figure.high, figure.n, note))


def rows_of(found: Findings, volume: str, patient: str, method: str) -> Iterator[Row]:
    """Yields the figures as rows of `metrics.csv`."""
    for region, metric, value, low, high, n, note in found.figures:
        yield Row(volume, patient, method, region, metric, value, low, high, n, note)


def _tensors(original: RASVolume, recon: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(original.voxels), torch.from_numpy(recon)
