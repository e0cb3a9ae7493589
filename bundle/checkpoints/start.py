"""Starts a run from a file: from its weights only, or from the whole run in it."""

import logging
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from bundle.checkpoints.file import (
    NETWORK_SETTINGS,
    CheckpointError,
    check_network,
    load_generator,
    network_settings,
    read_checkpoint,
    read_settings,
)
from bundle.checkpoints.folder import best_paths, newest_sound_checkpoint, rolling_paths
from bundle.checkpoints.state import TrainingState
from bundle.distributed.collectives import gather, on_first_rank
from bundle.engines.trainer import AdversarialTrainer
from bundle.networks.fingerprint import fingerprint
from bundle.run.names import printable

logger = logging.getLogger(__name__)

AUTO = "auto"
EXPORTS = ("ckpt_export", "onnx_export", "trt_export")
DEFAULTS = network_settings("default", "ema", 16384, -1000.0, 1000.0)  # of configs/train.yaml


class StartFrom:
    """Loads `init_from` (the generator's weights, counters at zero) or `resume_from_checkpoint` (everything).

    The file is read and checked when this is made, before the run writes anything.

    Args:
        state: what to load into.
        init_from: checkpoint whose weights to start from; counters begin at zero, so the warm-up comes first.
        resume_from_checkpoint: checkpoint of a run to continue; `auto` = the newest sound one of this run. As
            long as there is none, a run with `auto` starts as it would without this setting.
        sampler: `ResumableSampler`, which is set to the iteration at which the run goes on.
        output_dir: folder of this run, for `auto`.
        init_from_learning_rate_ratio: share of the learning rate at which a run with `init_from` trains its
            generator, to its end and also after it is resumed. At the full rate a trained generator loses
            what it learned last.

    Raises:
        CheckpointError: if the file cannot be used for this start, or both files are given.
    """

    def __init__(
        self,
        state: TrainingState,
        init_from: str | Path | None = None,
        resume_from_checkpoint: str | Path | None = None,
        sampler: Any = None,
        output_dir: str | Path = ".",
        init_from_learning_rate_ratio: float = 1.0,
    ) -> None:
        self.is_automatic = resume_from_checkpoint == AUTO
        if self.is_automatic:
            folder = Path(output_dir) / "checkpoints"
            resume_from_checkpoint = on_first_rank(lambda: _newest_of_run(folder))
            init_from = init_from if resume_from_checkpoint is None else None
        if init_from is not None and resume_from_checkpoint is not None:
            raise CheckpointError(
                f"{init_from}: `init_from` and `resume_from_checkpoint` must not be given together, "
                f"got {resume_from_checkpoint} too; drop one"
            )
        self.state = state
        self.path = resume_from_checkpoint if init_from is None else init_from
        self.resuming = resume_from_checkpoint is not None
        self.ratio = init_from_learning_rate_ratio
        self.sampler = sampler
        self.content: dict[str, Any] = {}
        if self.path is not None:
            self.content = _read_to_resume(Path(self.path)) if self.resuming else read_checkpoint(self.path)
            check_network(self.path, self.content, state.settings)
            _require_same_file_on_all_ranks(self.path, self.content)
        if self.resuming:
            self._check_same_parts()

    def attach(self, engine: AdversarialTrainer) -> None:
        """Joins the trainer at its start, if there is a file to start from.

        Raises:
            CheckpointError: if the run to continue has epochs of another length.
        """
        if self.resuming:
            self._check_epoch_length(engine)
            self.state.scale_learning_rate(self.content["trainer"].get("learning_rate_share", 1.0))
        elif self.path is not None:
            self.state.scale_learning_rate(self.ratio)
        engine.add_event_handler(Events.STARTED, self, self.path)

    def __call__(self, engine: AdversarialTrainer, path: str | Path | None) -> None:
        """Loads the checkpoint once."""
        if self.is_automatic and not self.resuming:
            logger.info("No checkpoint to resume yet: this run starts at iteration 0")
        if path is None or not self.content:
            return
        if self.resuming:
            self._load_state(engine)
            if self.sampler is not None:
                self.sampler.start_iteration = engine.state.iteration
            logger.info("Resuming %s at iteration %d", path, engine.state.iteration)
        else:
            self.state.trained_on_before = self.content.get("trained_on", {})
            matched = load_generator(self.state.network, path, self.content)
            self.state.base = fingerprint(self.state.network)
            parts = Counter(name.partition(".")[0] for name in self.content["model"])
            told = ", ".join(f"{part} {count}" for part, count in parts.items())
            moments = "taken along" if self.state.take_moments(self.content) else "fresh"
            logger.info(
                "Starting from the weights of %s: %d tensors matched (%s), which are all of the generator's; "
                "counters at zero, Adam's moments %s, learning rate at %g of the config's",
                path, matched, told, moments, self.ratio,
            )  # fmt: skip
        self.content = {}  # frees the copy

    def _load_state(self, engine: AdversarialTrainer) -> None:
        try:
            self.state.load_state_dict(self.content, engine)
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            reason = printable(" ".join(str(error).split()))
            raise CheckpointError(
                f"{self.path}: cannot be resumed, its state does not fit this run ({type(error).__name__}: "
                f"{reason:.200}); to start from its weights use --init_from {shlex.quote(str(self.path))}"
            ) from error

    def _check_same_parts(self) -> None:
        """Refuses to continue an adversarial run from a base checkpoint, and the other way round."""
        if "trainer" not in self.content:
            raise CheckpointError(
                f"{self.path}: holds weights alone and cannot be resumed; to start from them use --init_from "
                f"{shlex.quote(str(self.path))} instead of --resume_from_checkpoint"
            )
        for part, expected in {
            "discriminators": set(self.state.discriminators.state_dict()),
            "optimizers": set(self.state.optimizers),
        }.items():
            if set(self.content.get(part, ())) != expected:
                raise CheckpointError(
                    f"{self.path}: its {part} are not those of this run, so it cannot be resumed here; to "
                    f"start from its weights use --init_from {shlex.quote(str(self.path))} "
                    "instead of --resume_from_checkpoint"
                )

    def _check_epoch_length(self, engine: AdversarialTrainer) -> None:
        saved = self.content["trainer"].get("epoch_length")
        if saved != engine.state.epoch_length:
            raise CheckpointError(
                f"{self.path}: was trained with `epoch_length` {saved}, here {engine.state.epoch_length}; "
                f"resume it with --epoch_length {saved}"
            )


def continues_run(output_dir: str | Path, resume_from_checkpoint: str | Path | None) -> bool:
    """Tells whether a run continues its own folder; a checkpoint of another folder begins a new run."""
    if resume_from_checkpoint is None or resume_from_checkpoint == AUTO:
        return resume_from_checkpoint == AUTO
    folder = Path(resume_from_checkpoint).resolve().parent
    return folder == (Path(output_dir) / "checkpoints").resolve()


def _require_same_file_on_all_ranks(path: str | Path, content: dict[str, Any]) -> None:
    """Refuses a path that leads to different files on different machines: the ranks' weights would differ."""
    weights = sum(float(tensor.double().sum()) for tensor in content["model"].values())
    if len(set(gather((content.get("trainer", {}).get("iteration"), weights)))) > 1:
        raise CheckpointError(
            f"{path}: is not the same file on all machines; put it, or the output folder, on a disk that all "
            "share"
        )


def _newest_of_run(folder: Path) -> Path | None:
    newest = newest_sound_checkpoint(folder)
    unreadable = [] if newest else [path.name for path in (*rolling_paths(folder), *best_paths(folder))]
    if unreadable:
        raise CheckpointError(
            f"{folder}: no checkpoint to resume, none can be read here ({', '.join(unreadable)}), the log "
            "says why; start a new run with another --output_dir, or bring back a copy of one"
        )
    return newest


def _read_to_resume(path: Path) -> dict[str, Any]:
    """Reads a checkpoint; where it cannot be read, the error names one beside it that can."""
    try:
        return read_checkpoint(path)
    except CheckpointError as error:
        sound = newest_sound_checkpoint(path.parent)
        if sound is None:
            raise
        raise CheckpointError(
            f"{error}. The newest sound one beside it: --resume_from_checkpoint {shlex.quote(str(sound))}"
        ) from error


def settings_of(
    ckpt_path: str | Path,
    preset: str | None = None,
    quantizer: str | None = None,
    num_embeddings: int | None = None,
    hu_min: float | None = None,
    hu_max: float | None = None,
) -> dict[str, Any]:
    """Completes the given settings from the checkpoint, and refuses a setting that differs from it.

    MONAI's export commands name their checkpoint by `--ckpt_file`; then that one is read. If there is no
    file, the missing settings are training's defaults, so that MONAI can look at the config before there is
    a model; `LoadGenerator` then refuses to go on.

    Args:
        ckpt_path: training checkpoint or installed model.
        preset: of the generator; None = the checkpoint's, also for the others.
        quantizer: by name.
        num_embeddings: number of codes K.
        hu_min: lower end of the window in HU.
        hu_max: upper end.

    Returns:
        all `NETWORK_SETTINGS` by name.

    Raises:
        CheckpointError: naming every setting that differs, and the override that helps; or if the file cannot
            be used.
    """
    values = (preset, quantizer, num_embeddings, hu_min, hu_max)
    given = {name: value for name, value in zip(NETWORK_SETTINGS, values, strict=True) if value is not None}
    path = Path(_option_of_export("--ckpt_file") or ckpt_path)
    found = read_settings(path) if path.is_file() else DEFAULTS | given
    check_network(path, {"network": found}, found | given)
    return network_settings(**found)


def _option_of_export(name: str) -> str | None:
    """Returns the value of an option of MONAI's export commands; None in any other process."""
    words = sys.argv
    if not any(word in EXPORTS for word in words[1:2]):
        return None
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == name or word.startswith(f"{name}="):
            return word.partition("=")[2] or following
    return None


class LoadGenerator:
    """Loads a checkpoint's generator before inference, which would otherwise run on random weights.

    Args:
        network: the generator.
        ckpt_path: checkpoint or installed model.
        settings: `network_settings` of the config; a checkpoint of others is refused.

    Raises:
        CheckpointError: if the file is missing, damaged, foreign, or of another network or HU window.
    """

    def __init__(self, network: Any, ckpt_path: str | Path, settings: dict[str, Any]) -> None:
        self.network = network
        self.path = ckpt_path
        self.content: dict[str, Any] | None = read_checkpoint(ckpt_path)
        check_network(ckpt_path, self.content, settings)

    def attach(self, engine: Engine) -> None:
        """Joins the evaluator at its start."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Loads the weights, unless they are loaded already."""
        self.load()

    def load(self) -> None:
        """Loads the weights once."""
        if self.content is not None:
            load_generator(self.network, self.path, self.content)
            self.content = None
