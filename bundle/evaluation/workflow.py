"""Evaluates a checkpoint on a data set, or pairs of files that any tool made, and writes what was found."""

from __future__ import annotations

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
from tqdm import tqdm

from bundle.data.cases.find import DatasetError
from bundle.data.latents.file import EncodedVolume, Record, write_latent_file
from bundle.data.volumes.fingerprint import voxel_fingerprint
from bundle.data.volumes.formats import VolumeError
from bundle.data.volumes.header_text import header_as_text
from bundle.data.volumes.reading import RASVolume, read_ras
from bundle.emboli.chest import Chest, find_chest
from bundle.emboli.inserted import CONTRASTS, Change, find_changes, insert
from bundle.evaluation.cases import (
    EvaluationCase,
    RefusedVolumeError,
    cases_of_data,
    cases_of_pairs,
    check_original,
    check_pair,
)
from bundle.evaluation.clots import ShownClots
from bundle.evaluation.model import Coded, TrainedModel
from bundle.evaluation.results import PARITIES, Results
from bundle.evaluation.volume import Inserted, Judge, judge
from bundle.inferers.codecs import CODECS, CodecError, compress
from bundle.losses.perceptual import SlicePerceptualLoss, cached_backbone
from bundle.metrics.codes import bits_per_voxel, code_use, nominal_bits_per_voxel
from bundle.reports.rows import MODEL, PAIRS, WHOLE, Row
from bundle.reports.summary import plain
from bundle.run.atomic import UnwritableError
from bundle.run.errors import EXIT_REFUSED
from bundle.run.names import patient_key, printable

logger = logging.getLogger(__name__)

DEFAULT_WINDOW = (-1000.0, 1000.0)
DEFAULT_CODEC_BITS, DEFAULT_TILE = 0.22, 128


class EvaluationError(ValueError):
    """An evaluation that cannot start; the message names the setting."""


class Evaluation:
    """The evaluation that `configs/evaluate.yaml` runs.

    Args:
        output_dir: folder of all results.
        dataset_dir: volumes to reconstruct with `ckpt_path`; see `find_cases`.
        ckpt_path: checkpoint or installed model.
        pairs: CSV of originals and reconstructions instead; see `cases_of_pairs`.
        device: of the network.
        tile_size: edge of a tile in voxels, one number or three; for pairs, what their tool used, None if it
            did not tile.
        hu_min: lower end of the window of all figures; None is the checkpoint's, for pairs -1000.
        hu_max: upper end; None is the checkpoint's, for pairs 1000.
        seed: selects which of the possible places get emboli.
        perceptual_network: LPIPS backbone.
        perceptual_weights_path: its file; None looks into torch's cache and never downloads.
        codecs: names of `bundle.inferers.codecs.CODECS`, judged in the same way.
        codec_bits_per_voxel: what they may spend; None is what the checkpoint's codes cost nominally, for
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
        self.seed, self.allow_seen, self.progress = seed, allow_seen, progress
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
        self.results = Results(Path(output_dir), (hu_min, hu_max), write_volumes)
        self.code_counts = np.zeros(0, np.int64)

    def run(self) -> dict[str, Any]:
        """Evaluates every volume, writes all results after each, and returns the summary's counts.

        Raises:
            UnwritableError: if the output folder cannot be written.
        """
        for case in tqdm(self.cases, unit="volume", desc="evaluate", disable=not self.progress):
            try:
                self._evaluate(case)
            except UnwritableError:  # the fault of the output folder or its disk, not of the volume
                raise
            except (VolumeError, RefusedVolumeError, DatasetError, OSError) as error:
                self.results.refuse(case, error)
            self.results.write(self._about())
        summary = self.results.write(self._about())
        self.results.write_report(summary)
        counts: dict[str, Any] = summary["counts"]
        logger.info("%s", ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in counts.items()))
        return counts

    def exit_if_refused(self) -> None:
        """Ends the process with exit code 3 if a volume was refused.

        Raises:
            SystemExit: 3.
        """
        if self.results.refused:
            sys.exit(EXIT_REFUSED)

    def _evaluate(self, case: EvaluationCase) -> None:
        original = read_ras(case.original)
        check_original(case, original)
        self._check_unseen(case, original)
        pair = self._read_pair(case, original)
        chest = find_chest(original.voxels, original.spacing_mm)
        changes = find_changes(original.voxels, original.spacing_mm, chest.lumen, self.seed)
        if not changes:
            self.results.warn(f"{case.name}: no filled vessel has room for emboli; clot figures stay empty")
        if self.model is not None:
            coded = self.model.reconstruct(original.voxels)
            recon, inserted = coded.recon, self._with_model(self.model, coded, changes)
        else:
            assert pair is not None
            recon, inserted = pair, self._from_files(case, original, changes)
        clots = ShownClots(original, changes)
        found = judge(original, recon, chest, changes, clots.watch(inserted), self.settings)
        results = self.results
        results.keep(case, original, found, self.method)
        results.keep_curves(case, found, clots)
        if self.model is not None:
            self._keep_codes(case, original, coded)
        for codec in self.codecs:
            self._judge_codec(codec, case, original, chest, changes)
        results.keep_volumes(case, original, recon, changes)
        results.draw(case, original, recon, chest.lumen)
        if results.write_volumes:
            results.write_viewer(case, original, recon, found, clots.view(found.readings))

    def _read_pair(self, case: EvaluationCase, original: RASVolume) -> np.ndarray | None:
        if case.reconstruction is None:
            return None
        if case.reconstruction.resolve() == case.original.resolve():
            self.results.warn(f"{case.name}: original and reconstruction are one file; name two files")
        pair = read_ras(case.reconstruction)
        for warning in check_pair(case, original, pair):
            self.results.warn(warning)
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
        self.results.seen.append(case.name)
        self.results.warn(
            f"{case.name}: the checkpoint was trained on {what}; its figures say nothing about others"
        )

    def _with_model(self, model: TrainedModel, coded: Coded, changes: Sequence[Change]) -> Inserted:
        def reconstruct(contrast: float, parity: int) -> np.ndarray:
            return model.reconstruct(insert(coded.voxels, changes, contrast, parity), coded).recon

        return reconstruct

    def _from_files(self, case: EvaluationCase, original: RASVolume, changes: Sequence[Change]) -> Inserted:
        """Finds, by its voxels, which emboli an inserted original holds."""
        files: dict[tuple[float, int], Path] = {}
        for inserted_original, inserted_recon in case.inserted:
            voxels = read_ras(inserted_original).voxels
            for contrast in CONTRASTS:
                for parity in PARITIES:
                    if np.array_equal(voxels, insert(original.voxels, changes, contrast, parity)):
                        files[contrast, parity] = inserted_recon
            if inserted_recon not in files.values():
                self.results.warn(
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

    def _judge_codec(
        self, codec: str, case: EvaluationCase, original: RASVolume, chest: Chest, changes: Sequence[Change]
    ) -> None:
        """Judges a codec on a volume; if the codec fails, its row says so and the evaluation goes on."""
        window = self.settings.hu_min, self.settings.hu_max
        try:
            plain_result = compress(codec, original.voxels, *window, self.codec_bits)

            def inserted(contrast: float, parity: int) -> np.ndarray:
                changed = insert(original.voxels, changes, contrast, parity)
                return compress(codec, changed, *window, self.codec_bits, plain_result.setting).recon

            found = judge(original, plain_result.recon, chest, changes, inserted, self.settings)
        except CodecError as error:
            note = printable(str(error))
            row = Row(case.name, printable(case.patient), codec, WHOLE, "psnr", math.nan, note=note)
            self.results.rows.append(row)
            self.results.warn(f"{case.name}: {error}")
            return
        self.results.keep(case, original, found, codec)
        self.results.add_figure(case, codec, WHOLE, "bits_per_voxel", plain_result.bits_per_voxel)

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
            self.results.add_figure(case, self.method, WHOLE, metric, value)

    def _file_bytes(self, case: EvaluationCase, original: RASVolume, coded: Coded) -> int:
        """Returns the size of the file of codes that configs/encode.yaml would write."""
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

    def _about(self) -> dict[str, Any]:
        about: dict[str, Any] = {
            "method": self.method,
            "hu_window": [self.settings.hu_min, self.settings.hu_max],
            "seed": self.seed,
            "tile_size": self.settings.tile_size,
            "lpips_backbone": self.perceptual_network if self.settings.perceptual is not None else None,
        }
        if self.model is not None:
            use = code_use(self.code_counts)
            about |= {"network": self.model.settings, "model_sha256": self.model.sha256}
            about |= {"recipe": self.model.recipe}
            about |= {
                "codes_used_over_all_volumes": plain(use.usage),
                "code_perplexity": plain(use.perplexity),
            }
        return about


def _perceptual(
    network: str, weights_path: str | Path | None, device: torch.device | str
) -> tuple[SlicePerceptualLoss | None, str]:
    """Returns LPIPS if its backbone is there; an evaluation downloads nothing."""
    if weights_path is None and cached_backbone(network) is None:
        return None, f"no weights of the {network} backbone; give --perceptual_weights_path FILE"
    return SlicePerceptualLoss(network, weights_path).to(device), ""
