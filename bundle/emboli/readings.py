"""Measures what model observers see at the sites of inserted emboli, in original and reconstruction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import signal

from bundle.emboli.inserted import CONTRASTS, RIM_MM, SEARCH_MM, SIZES_MM, Change, Site, insert
from bundle.metrics.observers import (
    Interval,
    auc_change,
    auc_interval,
    bootstrap_mean,
    hotelling_responses,
    laguerre_gauss_channels,
)

MIN_SITES = 12
"""With fewer sites an interval would mean nothing, so the cell stays empty."""
PLACES = {"all": (False, True), "central": (False,), "lung": (True,)}
FULL_LUMEN = 0.9
CHANNEL_WIDTH = 1.5
"""Width of a Laguerre-Gauss channel, in diameters of the embolus."""


class Reading(NamedTuple):
    """One embolus at one contrast.

    Attributes:
        site: where.
        contrast: share of a fresh clot's contrast.
        clot_contrast: share of the inserted change that the reconstruction kept.
        clot_loc_mm: how far the reconstruction moved it.
        npw: responses of the fixed template: original with and without, reconstruction with and without.
        channels: (4, C) outputs of the Laguerre-Gauss channels, in the same order.
    """

    site: Site
    contrast: float
    clot_contrast: float
    clot_loc_mm: float
    npw: tuple[float, float, float, float]
    channels: np.ndarray


class Figure(NamedTuple):
    """One figure of a kind of emboli; NaN with a note where it cannot be measured."""

    metric: str
    value: float
    low: float
    high: float
    n: int
    note: str = ""


def read_emboli(
    original: np.ndarray,
    recon: np.ndarray,
    recon_with: np.ndarray,
    changes: Sequence[Change],
    contrast: float,
    parity: int,
    spacing_mm: Sequence[float],
) -> Iterator[Reading]:
    """Measures the sites of one inserted volume.

    With d the inserted change, `clot_contrast` = <recon_with - recon, d> / <d, d>: 1 where all of it came
    through, 0 where it was wiped out. `clot_loc_mm` is how far d must be moved to fit `recon_with - recon`
    best, up to 3 mm. The template of the non-prewhitening observer (NPW) is d less its mean over the lumen
    within 3 mm, so blood of another density does not look like a clot. The template is the same for original
    and reconstruction.

    Args:
        original: (X, Y, Z) int16 in HU, without emboli.
        recon: its reconstruction.
        recon_with: reconstruction of the original with the emboli of `parity` at `contrast`.
        changes: from `find_changes`.
        contrast: share of a fresh clot's contrast at which the emboli were inserted.
        parity: 0 or 1, of the emboli that were inserted; see `Site`.
        spacing_mm: edges of a voxel.
    """
    original_with = insert(original, changes, contrast, parity)
    for change in changes:
        inserted = change.at(contrast)
        if change.site.parity != parity or not inserted.any():
            continue
        without = [_patch(volume, change) for volume in (original, recon)]
        # Cut from whole volumes, so that both have the same neighbours.
        with_clot = [_patch(volume, change) for volume in (original_with, recon_with)]
        patches = with_clot[0], without[0], with_clot[1], without[1]
        kept = with_clot[1] - without[1]
        d = inserted.astype(np.float64)
        template, channels = _template(change, spacing_mm), _channels(change, spacing_mm)
        responses = [float((template * patch).sum()) for patch in patches]
        yield Reading(
            change.site,
            contrast,
            float((kept * d).sum() / (d * d).sum()),
            _shift_mm(kept, d, spacing_mm),
            (responses[0], responses[1], responses[2], responses[3]),
            # No matrix product, since equal patches must give equal bits; otherwise chance would break ties.
            np.stack([(channels * patch).sum(axis=(1, 2, 3)) for patch in patches]),
        )


def clot_figures(readings: Sequence[Reading], size_mm: int, contrast: float, place: str) -> list[Figure]:
    """Computes the figures of one kind of emboli.

    Args:
        readings: of one volume.
        size_mm: diameter.
        contrast: share of a fresh clot's contrast.
        place: a name of `PLACES`.
    """
    chosen = [
        one
        for one in readings
        if one.site.size_mm == size_mm and one.contrast == contrast and one.site.is_in_lung in PLACES[place]
    ]
    names = (
        "clot_contrast clot_contrast_lowest_tenth clot_loc_mm clot_auc_npw_original clot_auc_npw "
        "clot_auc_npw_change clot_auc_cho_original clot_auc_cho clot_auc_cho_change"
    ).split()
    n = len(chosen)
    if n < MIN_SITES:
        note = f"{n} sites, at least {MIN_SITES} are needed"
        return [Figure(name, np.nan, np.nan, np.nan, n, note) for name in names]
    contrasts = np.array([one.clot_contrast for one in chosen])
    npw = np.array([one.npw for one in chosen]).T
    channels = np.stack([one.channels for one in chosen], axis=1)
    cho = [*hotelling_responses(channels[0], channels[1]), *hotelling_responses(channels[2], channels[3])]
    values: list[Interval] = [
        bootstrap_mean(contrasts),
        Interval(float(np.quantile(contrasts, 0.1)), np.nan, np.nan),
        bootstrap_mean(np.array([one.clot_loc_mm for one in chosen])),
    ]
    for with_o, without_o, with_r, without_r in (npw, cho):
        values += [
            auc_interval(with_o, without_o),
            auc_interval(with_r, without_r),
            auc_change((with_o, without_o), (with_r, without_r)),
        ]
    return [Figure(name, *value, n) for name, value in zip(names, values, strict=True)]


def all_clot_figures(readings: Sequence[Reading]) -> Iterator[tuple[str, Figure]]:
    """Yields every kind of emboli, named as in `clot 4 mm, contrast 1, all`, with each figure."""
    for size_mm in SIZES_MM:
        for contrast in CONTRASTS:
            for place in PLACES:
                for figure in clot_figures(readings, size_mm, contrast, place):
                    yield kind_name(size_mm, contrast, place), figure


def kind_name(size_mm: int, contrast: float, place: str) -> str:
    """Names a kind of emboli as tables do."""
    return f"clot {size_mm} mm, contrast {contrast:g}, {place}"


def _patch(volume: np.ndarray, change: Change) -> np.ndarray:
    return np.ascontiguousarray(volume[change.box], np.float64)


def _offsets(change: Change, spacing_mm: Sequence[float]) -> list[np.ndarray]:
    return [
        (np.arange(part.start, part.stop) - at) * edge
        for part, at, edge in zip(change.box, change.site.centre, spacing_mm, strict=True)
    ]


def _template(change: Change, spacing_mm: Sequence[float]) -> np.ndarray:
    x, y, z = np.ix_(*_offsets(change, spacing_mm))
    distance = np.sqrt(x**2 + y**2 + z**2)
    inside = (change.lumen_share >= FULL_LUMEN) & (distance <= change.site.size_mm / 2 + RIM_MM)
    template = np.where(inside, change.hu, 0).astype(np.float64)
    if inside.any():
        template[inside] -= template[inside].mean()
    energy = float((template * change.hu).sum())
    return template / energy if energy > 0 else template


def _channels(change: Change, spacing_mm: Sequence[float]) -> np.ndarray:
    """Returns (C, x, y, z) Laguerre-Gauss channels in the axial plane, weighted along z like the embolus."""
    x, y, _ = _offsets(change, spacing_mm)
    along_z = change.hu.sum(axis=(0, 1)).astype(np.float64)
    along_z /= along_z.sum()
    width = CHANNEL_WIDTH * change.site.size_mm
    planes = laguerre_gauss_channels(np.hypot(x[:, None], y[None, :]), width)
    return planes[..., None] * along_z


def _shift_mm(kept: np.ndarray, inserted: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Returns the length of the shift at which the inserted change best fits what was kept."""
    fit = signal.correlate(kept, inserted, mode="full", method="fft")
    centre = np.array(inserted.shape) - 1
    reach = [min(int(SEARCH_MM / edge), n - 1) for edge, n in zip(spacing_mm, inserted.shape, strict=True)]
    near = fit[tuple(slice(c - r, c + r + 1) for c, r in zip(centre, reach, strict=True))]
    best = np.unravel_index(int(np.argmax(near)), near.shape)
    shift = [(int(b) - r) * edge for b, r, edge in zip(best, reach, spacing_mm, strict=True)]
    return float(np.linalg.norm(shift))
