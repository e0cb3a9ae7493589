"""Hands out the volumes of an archive, counts the results, and lists the volumes that were skipped."""

import csv
import io
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from monai.config import PathLike
from torch.utils.data import Sampler

from bundle.archives.board import Board, JobError
from bundle.archives.faults import volume_fault
from bundle.data.cases.find import DatasetError
from bundle.data.cases.patients import Case
from bundle.run.atomic import remove_leftovers, write_text
from bundle.run.console import csv_cells
from bundle.run.errors import EXIT_REFUSED
from bundle.run.names import counted, of_part
from bundle.run.rules import check

logger = logging.getLogger(__name__)

OUTCOMES = ("written", "existing", "skipped")
SKIPPED_LIST = "skipped.csv"
# The list is written as a whole. Writing it after every volume would take quadratic time in an archive of bad
# volumes.
LIST_INTERVAL_S = 30


class Saver(Protocol):
    """The part that writes the results."""

    def path_of(self, source: PathLike) -> Path:
        """Returns the path of a volume's result."""

    def is_done(self, source: PathLike) -> bool:
        """Tells whether that result exists, made as this run would make it."""

    def fault(self, source: PathLike) -> str | None:
        """Says why the result of a volume cannot be saved; None if it can."""


class VolumeQueue(Sampler[int]):
    """Numbers of the volumes that this process works on, each claimed just before its turn.

    All processes of a job share one counter, so each volume is claimed once and fast processes do more.
    Volumes that a process claimed but did not finish are done by the next run.

    Args:
        cases: the same list in every process.
        board: of the job.
        saver: of the results.
        dataset_dir: from which the cases were listed.
        output_dir: gets `skipped.csv` if a volume is skipped.
        skip_existing: leave out volumes that have a result by the same model with the same settings.
        on_error: `stop` at a volume that cannot be used, or `skip` it.
        part: name of this process's share of the work; see `start_run`.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        board: Board,
        saver: Saver,
        dataset_dir: PathLike,
        output_dir: PathLike,
        skip_existing: bool = False,
        on_error: str = "stop",
        part: str = "",
    ) -> None:
        check(skip_existing=skip_existing, on_error=on_error)
        self.cases, self.board, self.saver = cases, board, saver
        self.dataset_dir = Path(dataset_dir).expanduser()
        self.skip_existing, self.skips_faults = skip_existing, on_error == "skip"
        self.list_path = of_part(Path(output_dir) / SKIPPED_LIST, part)
        self.listed: list[list[str]] = []
        self.list_time = 0.0
        self.own = Counter(dict.fromkeys(OUTCOMES, 0))
        self.start = time.monotonic()

    def __iter__(self) -> Iterator[int]:
        """Claims volumes until there are none left.

        Raises:
            JobError: see `Board.wait_for`.
        """
        self._begin()
        while (number := self.board.add("claimed") - 1) < len(self.cases):
            if self._is_wanted(self.cases[number]):
                yield number

    @property
    def cases_to_check(self) -> Sequence[Case]:
        """Returns the volumes that this process must check before anything is written."""
        return self.cases if self.board.is_first and not self.skips_faults else []

    def count_written(self) -> None:
        """Counts a finished volume, and logs the progress of the job."""
        self._count("written")
        self._log_progress()

    def skip(self, image: str, error: Exception) -> None:
        """Counts and lists a volume that cannot be used.

        Raises:
            Exception: `error` itself, if volumes may not be skipped or the volume is not the cause.
        """
        fault = volume_fault(error) if self.skips_faults else None
        if fault is None:
            raise error
        self._skip(image, fault)

    def finish(self) -> dict[str, Any]:
        """Waits for the other processes; the first one returns the summary of all, the others their own.

        Returns:
            `{"volumes": n, "written": n, "existing": n, "skipped": n, "seconds": s}`.

        Raises:
            JobError: if volumes are left unfinished.
        """
        with self.board.errors_told():
            return self._summary()

    def _summary(self) -> dict[str, Any]:
        seconds = round(time.monotonic() - self.start, 1)
        if not self.board.is_first:
            self.board.add("ended")
            return {**self.own, "seconds": seconds}
        self.board.wait_for("ended", self.board.world_size - 1)
        counts = {outcome: self.board.count(outcome) for outcome in OUTCOMES}
        self.write_list()
        n_left = len(self.cases) - sum(counts.values())
        everything = counted(len(self.cases), "volume")
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        logger.info("%s: %s", everything, outcomes)
        if n_left:
            raise JobError(f"not finished: {n_left} of {everything}; run it again")
        return {"volumes": len(self.cases), **counts, "seconds": seconds}

    def write_list(self) -> None:
        """Writes, in the first process, the list of all volumes skipped so far if it has grown.

        Raises:
            UnwritableError: see `bundle.run.atomic.write_text`.
        """
        new = self.board.items("skips", after=len(self.listed)) if self.board.is_first else []
        if not new:
            return
        self.listed += new
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(map(csv_cells, [("volume", "reason"), *self.listed]))
        write_text(self.list_path, text.getvalue())
        self.list_time = time.monotonic()

    def exit_if_skipped(self) -> None:
        """Ends the first process with exit code 3 if a volume was skipped.

        Raises:
            SystemExit: 3.
        """
        if self.board.is_first and self.board.count("skipped"):
            sys.exit(EXIT_REFUSED)

    def _begin(self) -> None:
        """Keeps every process from writing until the first one holds the folder's lock."""
        if self.board.is_first:
            self.list_path.unlink(missing_ok=True)
            for folder in {self.saver.path_of(case["image"]).parent for case in self.cases}:
                remove_leftovers(folder)
            self.board.add("begun")
        self.board.wait_for("begun", 1)
        self.start = time.monotonic()

    def _is_wanted(self, case: Mapping[str, str]) -> bool:
        image = case["image"]
        if self.skip_existing and self.saver.is_done(image):
            self._count("existing")
            return False
        fault = (case.get("fault") or self.saver.fault(image)) if self.skips_faults else None
        if fault is not None:
            self._skip(image, fault)
        return fault is None

    def _skip(self, image: str, fault: str) -> None:
        if not os.path.exists(self.dataset_dir):
            raise DatasetError(f"{self.dataset_dir}: is no longer there; bring it back and run it again")
        reason = fault.removeprefix(f"{image}: ")
        self.board.append("skips", [image, reason])
        self._count("skipped")
        logger.warning("%s is skipped: %s", image, reason)
        self._log_progress()

    def _count(self, outcome: str) -> None:
        self.board.add(outcome)
        self.own[outcome] += 1
        if time.monotonic() - self.list_time > LIST_INTERVAL_S:
            self.write_list()

    def _log_progress(self) -> None:
        written, existing, skipped = (self.board.count(outcome) for outcome in OUTCOMES)
        done, total = written + existing + skipped, len(self.cases)
        left_s = (time.monotonic() - self.start) / (written + skipped) * (total - done)
        logger.info(
            "%d of %s: %d written, %d there before, %d skipped; about %s left",
            *(done, counted(total, "volume"), written, existing, skipped, timedelta(seconds=round(left_s))),
        )
