"""Lists the checkpoints in a run's folder: which are sound, and which is the newest."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bundle.checkpoints.file import CheckpointError, read_checkpoint

logger = logging.getLogger(__name__)

BEST_COUNT = 3


def rolling_paths(folder: Path) -> list[Path]:
    """Lists `last.pt` and its predecessors, `previous_1.pt` and so on; the youngest first."""
    earlier = sorted(folder.glob("previous_*.pt"), key=lambda path: (len(path.name), path.name))
    return [path for path in (folder / "last.pt", *earlier) if path.is_file()]


def best_paths(folder: Path) -> list[Path]:
    """Lists those of `best_1.pt` to `best_3.pt` that exist."""
    paths = [folder / f"best_{rank}.pt" for rank in range(1, BEST_COUNT + 1)]
    return [path for path in paths if path.is_file()]


def newest_sound_checkpoint(folder: str | Path) -> Path | None:
    """Finds the checkpoint from which a run can resume with the least training lost.

    It is the one of the highest iteration among `last.pt` and `previous_*.pt`, or, if none of them is sound,
    among the best. A warning names each damaged one that is skipped.

    Args:
        folder: the `checkpoints` of a run.

    Returns:
        its path; None if there is no sound checkpoint.
    """
    for paths in (rolling_paths(Path(folder)), best_paths(Path(folder))):
        iterations = {path: content["trainer"]["iteration"] for path, content in sound(paths)}
        if iterations:
            return max(iterations, key=iterations.__getitem__)
    return None


def sound(paths: list[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yields the training checkpoints that can be read, with their content; logs the others."""
    for path in paths:
        try:
            content = read_checkpoint(path)
        except CheckpointError as error:
            logger.warning("Skipping a checkpoint: %s", error)
            continue
        if "trainer" in content:
            yield path, content
