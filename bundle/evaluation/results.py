"""Collects what an evaluation finds, and writes tables, summary, report, volumes, pictures, viewer pages."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from bundle.data.volumes.reading import RASVolume
from bundle.drawing.triptych import render_triptych
from bundle.emboli.chest import Lumen
from bundle.emboli.inserted import CONTRASTS, Change, insert
from bundle.evaluation.cases import EvaluationCase
from bundle.evaluation.clots import ShownClots
from bundle.evaluation.volume import Findings, rows_of
from bundle.reports.kept import FOLDER as KEPT
from bundle.reports.report import write_report
from bundle.reports.rows import Row
from bundle.reports.summary import summary_of
from bundle.reports.tables import (
    EMBOLI,
    EMBOLI_COLUMNS,
    FALSE_EMBOLI,
    FALSE_EMBOLI_COLUMNS,
    METRICS,
    embolus_line,
    write_metrics,
    write_table,
)
from bundle.run.atomic import complete_or_absent, write_text
from bundle.run.names import printable
from bundle.viewing.page import PageError, write_page
from bundle.viewing.views import BOX_SIDE, View, invented_places, views_of

logger = logging.getLogger(__name__)

PARITIES = {0: "even", 1: "odd"}
VIEWER_SIDES = (BOX_SIDE, 96, 64)


class Results:
    """Everything that an evaluation leaves in its output folder.

    Args:
        output_dir: the folder.
        window_hu: ends of the HU window of all figures.
        write_volumes: whether reconstructions, volumes with emboli and pages for a browser are kept.

    Attributes:
        rows: lines of `metrics.csv`.
        emboli: lines of `emboli.csv`.
        false_emboli: lines of `false_emboli.csv`.
        refused: name of each volume that was not evaluated, and why.
        warnings: sentences.
        seen: names of volumes that the checkpoint was trained on.
        volumes: by name, the files that belong to a volume.
    """

    def __init__(self, output_dir: Path, window_hu: tuple[float, float], write_volumes: bool) -> None:
        self.output_dir, self.window_hu, self.write_volumes = output_dir, window_hu, write_volumes
        self.rows: list[Row] = []
        self.emboli: list[tuple] = []
        self.false_emboli: list[tuple] = []
        self.refused: list[dict[str, str]] = []
        self.warnings: list[str] = []
        self.seen: list[str] = []
        self.volumes: dict[str, dict[str, str]] = {}

    def refuse(self, case: EvaluationCase, error: Exception) -> None:
        """Remembers a volume that is not evaluated."""
        reason = printable(" ".join(str(error).split())).removeprefix(f"{case.name}: ")
        self.refused.append({"volume": case.name, "reason": reason})
        logger.warning("%s is not evaluated: %s", case.name, reason)

    def warn(self, message: str) -> None:
        """Logs a warning and keeps it for the report."""
        self.warnings.append(printable(message))
        logger.warning("%s", printable(message))

    def keep(self, case: EvaluationCase, original: RASVolume, found: Findings, method: str) -> None:
        """Adds the figures of one volume and one method to the tables."""
        patient = printable(case.patient)
        self.rows += rows_of(found, case.name, patient, method)

        def place(voxel: Sequence[float]) -> list[float]:
            return nib.affines.apply_affine(original.affine, voxel).tolist()

        self.emboli += [
            embolus_line(case.name, patient, method, reading, place(reading.site.centre))
            for reading in found.readings
        ]
        self.false_emboli += [
            (case.name, patient, method, *spot.voxel, *place(spot.voxel), spot.strength)
            for spot in found.false_emboli
        ]

    def add_figure(self, case: EvaluationCase, method: str, region: str, metric: str, value: float) -> None:
        """Adds one figure without an interval."""
        self.rows.append(Row(case.name, printable(case.patient), method, region, metric, value))

    def keep_curves(self, case: EvaluationCase, found: Findings, clots: ShownClots) -> None:
        """Writes what reports and comparisons draw: errors by slice, noise spectra, pictures of emboli."""
        spectrum = found.spectrum
        none = np.empty(0)
        arrays: dict[str, Any] = clots.as_arrays(found.readings) | {
            "slice_rmse_hu": found.slice_rmse_hu,
            "frequency_per_mm": spectrum.frequency_per_mm if spectrum else none,
            "noise_original": spectrum.original if spectrum else none,
            "noise_recon": spectrum.recon if spectrum else none,
        }
        with complete_or_absent(self.output_dir / KEPT / f"{case.stem}.npz") as unfinished:
            np.savez_compressed(unfinished, **arrays)

    def keep_volumes(
        self, case: EvaluationCase, original: RASVolume, recon: np.ndarray, changes: Sequence[Change]
    ) -> None:
        """Writes the reconstruction, if a model made it, and the volumes with emboli."""
        self.volumes[case.name] = {
            "stem": case.stem,
            "original": str(case.original.absolute()),
            "reconstruction": str(case.reconstruction.absolute()) if case.reconstruction else "",
        }
        if not self.write_volumes:
            return
        if case.reconstruction is None:
            path = self.output_dir / "reconstructions" / f"{case.stem}_recon.nii.gz"
            _save(path, recon, original.affine)
            self.volumes[case.name]["reconstruction"] = str(path.absolute())
        if not changes or case.inserted:
            return
        for contrast in CONTRASTS:
            for parity, word in PARITIES.items():
                name = f"{case.stem}_clots_{round(100 * contrast):03d}_{word}.nii.gz"
                inserted = insert(original.voxels, changes, contrast, parity)
                _save(self.output_dir / "inserted" / name, inserted, original.affine)

    def draw(self, case: EvaluationCase, original: RASVolume, recon: np.ndarray, lumen: Lumen | None) -> None:
        """Draws a picture through the middle of the filled vessels, where radiologists look for emboli."""
        centre = None
        if lumen is not None:
            centre = [
                int(np.median(axis)) + o for axis, o in zip(np.nonzero(lumen.wall), lumen.origin, strict=True)
            ]
        hu_min, hu_max = self.window_hu
        picture = render_triptych(
            original.voxels, recon, original.spacing_mm, hu_min=hu_min, hu_max=hu_max, centre=centre,
            caption=case.name,
        )  # fmt: skip
        with complete_or_absent(self.output_dir / "pictures" / f"{case.stem}.png") as unfinished:
            Image.fromarray(picture).save(unfinished)

    def write_viewer(
        self,
        case: EvaluationCase,
        original: RASVolume,
        recon: np.ndarray,
        found: Findings,
        clots: View | None,
    ) -> None:
        """Writes a page for a browser; its boxes shrink until the page is small enough."""
        places = invented_places(found.false_emboli)
        notice = ""
        if case.name in self.seen:
            notice = (
                "The checkpoint was trained on this volume or patient: its figures say nothing about others."
            )
        for side in VIEWER_SIDES:
            views = views_of(original.voxels, recon, original.affine, self.window_hu, places, side)
            if clots is not None:
                views.insert(1, clots)
            path = self.output_dir / "viewer" / f"{case.stem}.html"
            try:
                return write_page(path, case.name, views, *self.window_hu, notice)
            except PageError as error:
                reason = str(error)
        self.warn(f"{case.name}: {reason}")

    def write(self, about: dict[str, Any]) -> dict[str, Any]:
        """Writes tables and summary; returns the summary."""
        write_metrics(self.output_dir / METRICS, self.rows)
        write_table(self.output_dir / EMBOLI, EMBOLI_COLUMNS, self.emboli)
        write_table(self.output_dir / FALSE_EMBOLI, FALSE_EMBOLI_COLUMNS, self.false_emboli)
        about = about | {"scored_although_trained_on": self.seen}
        summary = summary_of(self.rows, self.refused, self.warnings, about)
        write_text(self.output_dir / "summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
        write_text(self.output_dir / "volumes.json", json.dumps(self.volumes, indent=1) + "\n")
        return summary

    def write_report(self, summary: dict[str, Any]) -> None:
        """Writes `report.html` from the summary and what was kept."""
        stems = {name: files["stem"] for name, files in self.volumes.items()}
        write_report(self.output_dir, summary, self.rows, stems)


def _save(path: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    with complete_or_absent(path) as unfinished:
        nib.save(image, unfinished)
