"""Checks, before a run, for what would fail later: each check answers with one line, ok or what to do."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from bundle.data.volumes.formats import format_of
from bundle.distributed.collectives import gather, on_first_rank
from bundle.distributed.launcher import LaunchError, idle_tasks_note, refuse_misuse
from bundle.distributed.ranks import is_joined, world_size
from bundle.distributed.shares import batch_share
from bundle.engines.advice import ADVICE
from bundle.engines.trainer import AdversarialTrainer
from bundle.inferers.tile_size import free_bytes, is_out_of_memory
from bundle.losses.objective import GeneratorObjective
from bundle.run.atomic import free_bytes as free_room
from bundle.run.names import counted

logger = logging.getLogger(__name__)

# last.pt, two before it, three best, and a new one beside them while it is written
CHECKPOINT_FILES = 7
MIB = 2**20


class PreflightError(ValueError):
    """A run that would fail later; the message is what to do about it."""


class Check(NamedTuple):
    """One answer: what was looked at, `ok`, `warning` or `error`, and what was found or what to do."""

    name: str
    level: str
    told: str

    def __str__(self) -> str:
        return f"{self.level:<8}{self.name}: {self.told}"


def check_start(
    output_dir: str,
    cache_dir: str,
    cases: Mapping[str, Sequence[Mapping[str, Any]]],
    network: nn.Module,
    objective: GeneratorObjective,
    device: torch.device | str,
    amp: bool,
) -> list[Check]:
    """Makes all checks that need no trainer; nothing is written.

    Args:
        output_dir: of the run; need not exist.
        cache_dir: of the patch store; need not exist.
        cases: of `split_cases`.
        network: the generator.
        objective: with discriminators and LPIPS.
        device: where training will run.
        amp: whether bf16 is wanted.
    """
    return [
        check_data(cases),
        check_writable(output_dir),
        check_disk(output_dir, checkpoint_bytes(network, objective) * CHECKPOINT_FILES, "checkpoints"),
        check_disk(cache_dir, store_bytes(cases, cache_dir), "patch store"),
        check_device(torch.device(device), amp),
        check_ranks(),
    ]


def require_start(**settings: Any) -> None:
    """Logs every check of `check_start`, whose arguments it takes, and refuses a run that cannot work.

    Raises:
        PreflightError: on rank 0, with every error found on any rank.
        FirstRankError: on the other ranks, at the same time.
    """
    _refuse_on_all_ranks(check_start(**settings))


def require_memory(trainer: AdversarialTrainer, patch_size: Sequence[int], batch_size: int) -> None:
    """Logs what `check_memory` finds, and refuses a run that would run out of memory.

    Raises:
        PreflightError: on rank 0, with what to do.
        FirstRankError: on the other ranks, at the same time.
    """
    _refuse_on_all_ranks([check_memory(trainer, patch_size, batch_size)])


def _refuse_on_all_ranks(checks: list[Check]) -> None:
    """Lets rank 0 log what each rank has found on its machine; no rank goes on if one cannot."""
    first, *others = gather(checks)
    found = [
        check._replace(told=f"{check.told} (rank {rank})")
        for rank, theirs in enumerate(others, start=1)
        for check in theirs
        if check.level != "ok"
    ]
    on_first_rank(lambda: refuse_errors([*first, *found]))


def refuse_errors(checks: Iterable[Check]) -> None:
    """Logs the checks; errors end the run.

    Raises:
        PreflightError: with every error found.
    """
    errors = []
    for check in checks:
        level = logging.INFO if check.level == "ok" else logging.WARNING
        logger.log(level, "Preflight: %s", check)
        if check.level == "error":
            errors.append(f"{check.name}: {check.told}")
    if errors:
        raise PreflightError("; ".join(errors))


def check_data(cases: Mapping[str, Sequence[Mapping[str, Any]]]) -> Check:
    """Says how many volumes and patients each side of the split has."""
    counts = {
        name: (len(part), len({case.get("patient", case["image"]) for case in part}))
        for name, part in cases.items()
    }
    told = ", ".join(
        f"{counted(volumes, f'{name} volume')} of {counted(people, 'patient')}"
        for name, (volumes, people) in counts.items()
    )
    images = [{case["image"] for case in part} for part in cases.values()]
    if len(images) > 1 and not images[0].isdisjoint(images[1]):
        return Check("data", "warning", f"{told}: the same volumes on both sides; give at least two patients")
    return Check("data", "ok", told)


def check_writable(output_dir: str | Path) -> Check:
    """Tells whether the folder, or the nearest one above it that exists, can be written."""
    folder = _existing(Path(output_dir))
    if not folder.is_dir():
        return Check("output", "error", f"{folder}: is a file; give another --output_dir")
    if not os.access(folder, os.W_OK | os.X_OK):
        return Check("output", "error", f"{folder}: cannot be written; give another --output_dir")
    return Check("output", "ok", f"{output_dir} can be written")


def check_disk(folder: str | Path, needed: int, what: str) -> Check:
    """Tells whether the disk has room for `needed` more bytes."""
    free = free_room(Path(folder))
    told = f"{folder}: about {needed / MIB:,.0f} MiB needed, {free / MIB:,.0f} MiB free"
    if free < needed:
        option = "--cache_dir" if what == "patch store" else "--output_dir"
        return Check(f"disk for {what}", "error", f"{told}; make room or give another {option}")
    return Check(f"disk for {what}", "ok", told)


def check_device(device: torch.device, amp: bool) -> Check:
    """Tells whether the device can compute in bf16 if it should; the rule of `device` checks if it exists."""
    if device.type != "cuda":
        advice = "; a GPU is about a hundred times as fast" if torch.cuda.is_available() else ""
        return Check("device", "ok", f"{device}, float32{advice}")
    if amp and not torch.cuda.is_bf16_supported(including_emulation=False):
        return Check("device", "error", f"{device} does not compute in bf16; give --amp false")
    return Check("device", "ok", f"{device}, {'bf16' if amp else 'float32'}")


def check_ranks() -> Check:
    """Tells whether processes started together train together; else they overwrite each other's files."""
    try:
        refuse_misuse(is_joined())
    except LaunchError as error:
        return Check("ranks", "error", str(error))
    note = idle_tasks_note(is_joined())
    if note:
        return Check("ranks", "warning", note)
    ranks = world_size()
    return Check("ranks", "ok", "1 process" if ranks == 1 else f"{ranks} processes that train together")


def check_memory(trainer: AdversarialTrainer, patch_size: Sequence[int], batch_size: int) -> Check:
    """Tells whether training fits on a GPU, by running one iteration with all losses; it leaves no trace.

    On a CPU the memory that an iteration takes cannot be measured, so none is run there.

    Args:
        trainer: built, not running.
        patch_size: in voxels.
        batch_size: patches per iteration, of all ranks together.
    """
    device = trainer.state.device
    free = free_bytes(device)
    if device.type != "cuda":
        told = f"not known, since a CPU does not tell what an iteration takes; {free / MIB:,.0f} MiB are free"
        return Check("memory", "ok", f"{told}. If it runs out: {ADVICE['out_of_memory'].change}")
    held = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        moments = trainer.rehearse((batch_share(batch_size), 1, *patch_size))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return judge_memory(None, free, trainer.memory_fallback.oom_policy)
    needed = torch.cuda.max_memory_allocated(device) - held + moments
    torch.cuda.empty_cache()
    return judge_memory(needed, free, trainer.memory_fallback.oom_policy)


def judge_memory(needed: int | None, free: int, oom_policy: str) -> Check:
    """Tells whether an iteration fits.

    Args:
        needed: bytes that it took, with Adam's moments; None if it ran out of memory.
        free: bytes.
        oom_policy: with `degrade` a run that does not fit may start, since it will make itself smaller.
    """
    what, there = "an iteration behind the gate", f"{free / MIB:,.0f} free MiB"
    if needed is not None and needed <= free:
        return Check("memory", "ok", f"{what} takes {needed / MIB:,.0f} of {there}, measured")
    level = "warning" if oom_policy == "degrade" else "error"
    return Check("memory", level, f"{what} does not fit into {there}: {ADVICE['out_of_memory'].change}")


def checkpoint_bytes(network: nn.Module, objective: GeneratorObjective) -> int:
    """Returns the size of one checkpoint: weights and Adam's two moments of both sides."""
    tensors = [*network.state_dict().values(), *objective.discriminators.state_dict().values()]
    return 3 * sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def store_bytes(cases: Mapping[str, Sequence[Mapping[str, Any]]], cache_dir: str | Path) -> int:
    """Estimates the size of a new patch store from the sizes of the files; 0 if there is a store."""
    if Path(cache_dir).is_dir() and any(Path(cache_dir).iterdir()):
        return 0
    paths = {Path(case["image"]) for part in cases.values() for case in part}
    readers = [(path, found) for path in paths if (found := format_of(path))]
    # several series may lie in one folder
    ratios = {file: found.stored_ratio(path) for path, found in readers for file in found.source_files(path)}
    return int(sum(ratio * file.stat().st_size for file, ratio in ratios.items() if file.is_file()))


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
