"""Evaluates a checkpoint on a data set, or pairs of files of any tool, and writes what was found."""

from __future__ import annotations

import json
import logging
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from bundle.data.cases.find import DatasetError
from bundle.data.latents.file import EncodedVolume, Record, write_latent_file
from bundle.data.volumes.fingerprint import voxel_fingerprint
from bundle.data.volumes.formats import VolumeError
from bundle.data.volumes.header_text import header_as_text
from bundle.drawing.triptych import render_triptych
from bundle.evaluation.cases import (
    EvaluationCase,
    RASVolume,
    RefusedVolumeError,
    cases_of_data,
    cases_of_pairs,
    check_original,
    check_pair,
    read_ras,
)
from bundle.evaluation.chest import Chest, Lumen, find_chest
from bundle.evaluation.emboli import CONTRASTS, Change, find_changes, insert
from bundle.evaluation.model import Coded, TrainedModel
from bundle.evaluation.readings import Reading
from bundle.evaluation.report import write_report
from bundle.evaluation.summary import plain, summary_of
from bundle.evaluation.tables import (
    EMBOLI,
    EMBOLI_COLUMNS,
    FALSE_EMBOLI,
    FALSE_EMBOLI_COLUMNS,
    METRICS,
    embolus_line,
    write_metrics,
    write_table,
)
from bundle.evaluation.volume import MODEL, PAIRS, WHOLE, Findings, Inserted, Judge, Row, judge, rows_of
from bundle.inferers.codecs import CODECS, CodecError, compress
from bundle.losses.perceptual import SlicePerceptualLoss, cached_backbone
from bundle.metrics.codes import bits_per_voxel, code_use, nominal_bits_per_voxel
from bundle.run.atomic import complete_or_absent, write_text
from bundle.run.errors import EXIT_REFUSED
from bundle.run.names import patient_key, printable
from bundle.viewing.page import PageError, write_page
from bundle.viewing.views import BOX_SIDE, Place, View, box_slices, invented_places, views_of

logger = logging.getLogger(__name__)

DEFAULT_WINDOW = (-1000.0, 1000.0)
DEFAULT_CODEC_BITS, DEFAULT_TILE = 0.22, 128
PARITIES = {0: "even", 1: "odd"}
VIEWER_SIDES = (BOX_SIDE, 96, 64)
MAX_CLOT_PLACES = 20


class EvaluationError(ValueError):
    """An evaluation that cannot start; the message names the setting."""


class Evaluation:
    """What `configs/evaluate.yaml` runs.

    Args:
        output_dir: folder of all results.
        dataset_dir: volumes to reconstruct with `ckpt_path`; see `find_cases`.
        ckpt_path: checkpoint or installed model.
        pairs: CSV of originals and reconstructions instead; see `cases_of_pairs`.
        device: of the network.
        tile_size: edge of a tile in voxels, one number or three; of pairs, what their tool used,
            null if it did not tile.
        hu_min: lower end of the window of all figures; null is the checkpoint's, of pairs -1000.
        hu_max: upper end; null is the checkpoint's, of pairs 1000.
        seed: which of the possible places get emboli.
        perceptual_network: LPIPS backbone.
        perceptual_weights_path: its file; null looks into torch's cache and never downloads.
        codecs: names of `bundle.inferers.codecs.CODECS`, judged in the same way.
        codec_bits_per_voxel: what they may spend; null is what the checkpoint's codes cost nominally, of
            pairs 0.22.
        write_volumes: keep reconstructions and volumes with emboli in the output folder.
        allow_seen: score volumes that the checkpoint was trained on, and say so.
        progress: show bars.
    """

    def __init__(
        self,
        output_dir: str | Path,
        dataset_dir: str | Path | None = None,
        ckpt_path: str | Path | None = None,
        pairs: str | Path | None = None,
        device: torch.device | str = "cpu",
        tile_size: int | Sequence[int] | str | None = 128,
        hu_min: float | None = None,
        hu_max: float | None = None,
        seed: int = 0,
        perceptual_network: str = "vgg",
        perceptual_weights_path: str | Path | None = None,
        codecs: Sequence[str] | None = None,
        codec_bits_per_voxel: float | None = None,
        write_volumes: bool = True,
        allow_seen: bool = False,
        progress: bool = True,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.seed, self.write_volumes = seed, write_volumes
        self.allow_seen, self.progress = allow_seen, progress
        self.model: TrainedModel | None = None
        window = DEFAULT_WINDOW
        tile_size = DEFAULT_TILE if isinstance(tile_size, str) else tile_size  # "auto" of other configs
        if pairs is not None:
            self.method = PAIRS
            self.cases = cases_of_pairs(pairs)
        else:
            self.method = MODEL
            if dataset_dir is None or ckpt_path is None:
                raise EvaluationError(
                    "`dataset_dir` and `ckpt_path` must be given, or `pairs` instead; name files"
                )
            self.cases = cases_of_data(dataset_dir)
            self.model = TrainedModel(ckpt_path, device, tile_size or DEFAULT_TILE, progress)
            window = self.model.settings["hu_min"], self.model.settings["hu_max"]
        hu_min, hu_max = window[0] if hu_min is None else hu_min, window[1] if hu_max is None else hu_max
        if not hu_min < hu_max:
            raise EvaluationError(f"`hu_min` must be below `hu_max`, got {hu_min} and {hu_max}; give HU")
        self.codecs = tuple(codecs or ())
        if unknown := [name for name in self.codecs if name not in CODECS]:
            raise EvaluationError(f"`codecs` must be some of {', '.join(CODECS)}, got {', '.join(unknown)}")
        self.codec_bits = codec_bits_per_voxel or self._nominal_bits()
        perceptual, note = _perceptual(perceptual_network, perceptual_weights_path, device)
        self.settings = Judge(hu_min, hu_max, tile_size, perceptual, note)
        self.perceptual_network = perceptual_network
        self.rows: list[Row] = []
        self.emboli: list[tuple] = []
        self.false_emboli: list[tuple] = []
        self.refused: list[dict[str, str]] = []
        self.warnings: list[str] = []
        self.seen: list[str] = []
        self.volumes: dict[str, dict[str, str]] = {}
        self.code_counts = np.zeros(0, np.int64)

    def run(self) -> dict[str, Any]:
        """Evaluates every volume, writes all results after each, and returns the summary's counts."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        for case in tqdm(self.cases, unit="volume", desc="evaluate", disable=not self.progress):
            try:
                self._evaluate(case)
            except (VolumeError, RefusedVolumeError, DatasetError, OSError) as error:
                reason = printable(" ".join(str(error).split())).removeprefix(f"{case.name}: ")
                self.refused.append({"volume": case.name, "reason": reason})
                logger.warning("%s is not evaluated: %s", case.name, reason)
            self._write()
        summary = self._write()
        write_report(self.output_dir, summary, self.rows)
        counts: dict[str, Any] = summary["counts"]
        logger.info("%s", ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in counts.items()))
        return counts

    def exit_if_refused(self) -> None:
        """Tells by the exit code whether a volume was refused.

        Raises:
            SystemExit: 3, if there was one.
        """
        if self.refused:
            sys.exit(EXIT_REFUSED)

    def _evaluate(self, case: EvaluationCase) -> None:
        original = read_ras(case.original)
        check_original(case, original)
        self._check_unseen(case, original)
        pair = self._read_pair(case, original)
        chest = find_chest(original.voxels, original.spacing_mm)
        changes = find_changes(original.voxels, original.spacing_mm, chest.lumen, self.seed)
        if not changes:
            self._warn(f"{case.name}: no filled vessel has room for emboli; clot figures stay empty")
        if self.model is not None:
            coded = self.model.reconstruct(original.voxels)
            recon, inserted = coded.recon, self._with_model(self.model, coded, changes)
        else:
            assert pair is not None
            recon, inserted = pair, self._from_files(case, original, changes)
        clots = _ClotBox(original, changes)
        found = judge(original, recon, chest, changes, clots.watch(inserted), self.settings)
        self._keep(case, original, found, self.method)
        self._keep_curves(case, found)
        if self.model is not None:
            self._keep_codes(case, original, coded)
        for codec in self.codecs:
            self._judge_codec(codec, case, original, chest, changes)
        self._write_volumes(case, original, recon, changes)
        self._draw(case, original, recon, chest.lumen)
        if self.write_volumes:
            self._write_viewer(case, original, recon, found, clots.view(found.readings))

    def _read_pair(self, case: EvaluationCase, original: RASVolume) -> np.ndarray | None:
        if case.reconstruction is None:
            return None
        pair = read_ras(case.reconstruction)
        for warning in check_pair(case, original, pair):
            self._warn(warning)
        return pair.voxels

    def _check_unseen(self, case: EvaluationCase, original: RASVolume) -> None:
        if self.model is None:
            return
        is_seen = voxel_fingerprint(original.voxels) in self.model.trained_on["voxels"]
        is_known = patient_key(case.patient) in self.model.trained_on["patients"]
        if not is_seen and not is_known:
            return
        what = "this volume" if is_seen else "this patient"
        if not self.allow_seen:
            raise RefusedVolumeError(
                f"{case.name}: the checkpoint was trained on {what}, so its figures say nothing about "
                "others; leave it out, or score it all the same with --allow_seen true"
            )
        self.seen.append(case.name)
        self._warn(f"{case.name}: the checkpoint was trained on {what}; its figures say nothing about others")

    def _with_model(self, model: TrainedModel, coded: Coded, changes: Sequence[Change]) -> Inserted:
        def reconstruct(contrast: float, parity: int) -> np.ndarray:
            return model.reconstruct(insert(coded.voxels, changes, contrast, parity), coded).recon

        return reconstruct

    def _from_files(self, case: EvaluationCase, original: RASVolume, changes: Sequence[Change]) -> Inserted:
        """Finds out by the voxels which emboli an inserted original holds."""
        files: dict[tuple[float, int], Path] = {}
        for inserted_original, inserted_recon in case.inserted:
            voxels = read_ras(inserted_original).voxels
            for contrast in CONTRASTS:
                for parity in PARITIES:
                    if np.array_equal(voxels, insert(original.voxels, changes, contrast, parity)):
                        files[contrast, parity] = inserted_recon
            if inserted_recon not in files.values():
                self._warn(
                    f"{case.name}: {printable(inserted_original.name)} is not what `seed` {self.seed} makes "
                    "of the original; take the files of OUT/inserted, with the same --seed"
                )

        def read(contrast: float, parity: int) -> np.ndarray | None:
            if (contrast, parity) not in files:
                return None
            recon = read_ras(files[contrast, parity])
            check_pair(case, original, recon)
            return recon.voxels

        return read

    def _warn(self, message: str) -> None:
        self.warnings.append(printable(message))
        logger.warning("%s", printable(message))

    def _keep(self, case: EvaluationCase, original: RASVolume, found: Findings, method: str) -> None:
        patient = printable(case.patient)
        self.rows += rows_of(found, case.name, patient, method)
        place = lambda voxel: nib.affines.apply_affine(original.affine, voxel).tolist()  # noqa: E731
        self.emboli += [
            embolus_line(case.name, patient, method, reading, place(reading.site.centre))
            for reading in found.readings
        ]
        self.false_emboli += [
            (case.name, patient, method, *spot.voxel, *place(spot.voxel), spot.strength)
            for spot in found.false_emboli
        ]

    def _keep_curves(self, case: EvaluationCase, found: Findings) -> None:
        folder = self.output_dir / "kept"
        folder.mkdir(exist_ok=True)
        spectrum = found.spectrum
        none = np.empty(0)
        with complete_or_absent(folder / f"{case.stem}.npz") as unfinished:
            np.savez_compressed(
                unfinished,
                slice_rmse_hu=found.slice_rmse_hu,
                frequency_per_mm=spectrum.frequency_per_mm if spectrum else none,
                noise_original=spectrum.original if spectrum else none,
                noise_recon=spectrum.recon if spectrum else none,
            )

    def _judge_codec(
        self, codec: str, case: EvaluationCase, original: RASVolume, chest: Chest, changes: Sequence[Change]
    ) -> None:
        """Judges what a codec makes of a volume; one that fails is told in its row, and the rest goes on."""
        window = self.settings.hu_min, self.settings.hu_max
        patient = printable(case.patient)
        try:
            plain_result = compress(codec, original.voxels, *window, self.codec_bits)

            def inserted(contrast: float, parity: int) -> np.ndarray:
                changed = insert(original.voxels, changes, contrast, parity)
                return compress(codec, changed, *window, self.codec_bits, plain_result.setting).recon

            found = judge(original, plain_result.recon, chest, changes, inserted, self.settings)
        except CodecError as error:
            note = printable(str(error))
            self.rows.append(Row(case.name, patient, codec, WHOLE, "psnr", math.nan, note=note))
            self._warn(f"{case.name}: {error}")
            return
        self._keep(case, original, found, codec)
        bits = plain_result.bits_per_voxel
        self.rows.append(Row(case.name, patient, codec, WHOLE, "bits_per_voxel", bits))

    def _nominal_bits(self) -> float:
        if self.model is None:
            return DEFAULT_CODEC_BITS
        return nominal_bits_per_voxel(int(self.model.settings["num_embeddings"]), self.model.stride)

    def _keep_codes(self, case: EvaluationCase, original: RASVolume, coded: Coded) -> None:
        assert self.model is not None
        n_codes = int(self.model.settings["num_embeddings"])
        counts = np.bincount(coded.indices.ravel(), minlength=n_codes)
        self.code_counts = counts if not len(self.code_counts) else self.code_counts + counts
        use = code_use(counts)
        figures = {
            "code_usage": use.usage,
            "code_perplexity": use.perplexity,
            "bits_per_voxel": bits_per_voxel(self._file_bytes(case, original, coded), original.voxels.size),
            "bits_per_voxel_nominal": nominal_bits_per_voxel(n_codes, self.model.stride),
        }
        for metric, value in figures.items():
            self.rows.append(Row(case.name, printable(case.patient), self.method, WHOLE, metric, value))

    def _file_bytes(self, case: EvaluationCase, original: RASVolume, coded: Coded) -> int:
        """Size of the file of codes that configs/encode.yaml would write."""
        assert self.model is not None
        affine = original.affine.tolist()
        header, header_class = header_as_text(
            nib.Nifti1Image(np.empty((1, 1, 1), np.int16), original.affine).header
        )
        x, y, z = original.voxels.shape
        record = Record(
            case.stem, (x, y, z), affine, affine, header, header_class, self.model.settings, self.model.sha256
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "codes.npz"
            write_latent_file(path, EncodedVolume(record, coded.indices, None))
            return path.stat().st_size

    def _write_volumes(
        self, case: EvaluationCase, original: RASVolume, recon: np.ndarray, changes: Sequence[Change]
    ) -> None:
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

    def _draw(
        self, case: EvaluationCase, original: RASVolume, recon: np.ndarray, lumen: Lumen | None
    ) -> None:
        """A picture through the middle of the filled vessels, where a reader would look for emboli."""
        centre = None
        if lumen is not None:
            centre = [
                int(np.median(axis)) + o for axis, o in zip(np.nonzero(lumen.wall), lumen.origin, strict=True)
            ]
        picture = render_triptych(
            original.voxels, recon, original.spacing_mm, hu_min=self.settings.hu_min,
            hu_max=self.settings.hu_max, centre=centre, caption=case.name,
        )  # fmt: skip
        path = self.output_dir / "pictures" / f"{case.stem}.png"
        path.parent.mkdir(exist_ok=True)
        with complete_or_absent(path) as unfinished:
            Image.fromarray(picture).save(unfinished)

    def _write_viewer(
        self,
        case: EvaluationCase,
        original: RASVolume,
        recon: np.ndarray,
        found: Findings,
        clots: View | None,
    ) -> None:
        """A page for a browser; its boxes get smaller until it is not larger than it may be."""
        window = self.settings.hu_min, self.settings.hu_max
        places = invented_places(found.false_emboli)
        notice = ""
        if case.name in self.seen:
            notice = (
                "The checkpoint was trained on this volume or patient: its quality says nothing about others."
            )
        for side in VIEWER_SIDES:
            views = views_of(original.voxels, recon, original.affine, window, places, side)
            if clots is not None:
                views.insert(1, clots)
            try:
                write_page(
                    self.output_dir / "viewer" / f"{case.stem}.html", case.name, views, *window, notice
                )
                return
            except PageError as error:
                reason = str(error)
        self._warn(f"{case.name}: {reason}")

    def _write(self) -> dict[str, Any]:
        write_metrics(self.output_dir / METRICS, self.rows)
        write_table(self.output_dir / EMBOLI, EMBOLI_COLUMNS, self.emboli)
        write_table(self.output_dir / FALSE_EMBOLI, FALSE_EMBOLI_COLUMNS, self.false_emboli)
        summary = summary_of(self.rows, self.refused, self.warnings, self._about())
        write_text(self.output_dir / "summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
        write_text(self.output_dir / "volumes.json", json.dumps(self.volumes, indent=1) + "\n")
        return summary

    def _about(self) -> dict[str, Any]:
        about: dict[str, Any] = {
            "method": self.method,
            "hu_window": [self.settings.hu_min, self.settings.hu_max],
            "seed": self.seed,
            "tile_size": self.settings.tile_size,
            "lpips_backbone": self.perceptual_network if self.settings.perceptual is not None else None,
            "scored_although_trained_on": self.seen,
        }
        if self.model is not None:
            use = code_use(self.code_counts)
            about |= {"network": self.model.settings, "model_sha256": self.model.sha256}
            about |= {
                "codes_used_over_all_volumes": plain(use.usage),
                "code_perplexity": plain(use.perplexity),
            }
        return about


class _ClotBox:
    """Keeps what a viewer shows of inserted emboli: the box with most of them."""

    contrast, parity = 1.0, 0

    def __init__(self, original: RASVolume, changes: Sequence[Change]) -> None:
        self.original, self.changes = original, changes
        self.recon: np.ndarray | None = None
        centres = np.array([c.site.centre for c in changes if c.site.parity == self.parity]).reshape(-1, 3)
        self.box = None
        if len(centres):
            near = np.abs(centres[:, None] - centres).max(axis=2) < BOX_SIDE / 2
            self.box = box_slices(original.voxels.shape, centres[near.sum(axis=1).argmax()])

    def watch(self, inserted: Inserted) -> Inserted:
        """Gives what `inserted` gives, and keeps the box of one reconstruction."""

        def watched(contrast: float, parity: int) -> np.ndarray | None:
            recon = inserted(contrast, parity)
            if recon is not None and self.box and (contrast, parity) == (self.contrast, self.parity):
                self.recon = recon[self.box].copy()
            return recon

        return watched

    def view(self, readings: Sequence[Reading]) -> View | None:
        """The box with its emboli, those that lost most first; None where there is no reconstruction."""
        if self.recon is None or self.box is None:
            return None
        start = np.array([part.start for part in self.box])
        sites = sorted(
            (one for one in readings if (one.contrast, one.site.parity) == (self.contrast, self.parity)),
            key=lambda one: one.clot_contrast,
        )
        places = []
        for one in sites:
            x, y, z = np.rint(one.site.centre).astype(int) - start
            if min(x, y, z) >= 0 and all(
                at < size for at, size in zip((x, y, z), self.recon.shape, strict=True)
            ):
                name = f"embolus of {one.site.size_mm} mm, {one.clot_contrast:.0%} of its contrast kept"
                places.append(Place(name, (int(x), int(y), int(z))))
        inserted = insert(self.original.voxels, self.changes, self.contrast, self.parity)[self.box]
        affine = self.original.affine.copy()
        affine[:3, 3] = nib.affines.apply_affine(affine, start)
        name = "inserted emboli (in both volumes), full resolution"
        return View(name, inserted, self.recon, affine, tuple(places[:MAX_CLOT_PLACES]))


def _perceptual(
    network: str, weights_path: str | Path | None, device: torch.device | str
) -> tuple[SlicePerceptualLoss | None, str]:
    """LPIPS if its backbone is there; an evaluation downloads nothing."""
    if weights_path is None and cached_backbone(network) is None:
        return None, f"no weights of the {network} backbone; give --perceptual_weights_path FILE"
    return SlicePerceptualLoss(network, weights_path).to(device), ""


def _save(path: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    with complete_or_absent(path) as unfinished:
        nib.save(image, unfinished)
