"""Reads, runs and saves the volumes of a queue, and can skip volumes that cannot be used."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from monai.data import Dataset
from monai.engines import SupervisedEvaluator

from bundle.archives.faults import volume_fault
from bundle.archives.queue import VolumeQueue
from bundle.data.cases.patients import Case
from bundle.data.volumes.formats import VolumeError
from bundle.run.rules import check

SOURCE, FAULT = "source", "fault"


class ArchiveDataset(Dataset):
    """Transformed volumes with their `source`; for a volume to skip, its `fault` instead.

    A process that reads volumes passes an error to the main process only as text, and text does not show
    whether the volume or the machine is at fault. So the fault is returned, not raised.

    Args:
        data: items that hold the path of a volume.
        transform: reads it.
        on_error: `stop` raises, `skip` gives the fault.
    """

    def __init__(self, data: Sequence[Case], transform: Any = None, on_error: str = "stop") -> None:
        check(on_error=on_error)
        super().__init__(data, transform)
        self.skips_faults = on_error == "skip"

    def _transform(self, index: int) -> Any:
        source = {SOURCE: self.data[index]["image"]}
        try:
            return {**super()._transform(index), **source}
        except Exception as error:
            fault = volume_fault(error) if self.skips_faults else None
            if fault is None:
                raise
            return {**source, FAULT: fault}


class ArchiveEvaluator(SupervisedEvaluator):
    """A SupervisedEvaluator that reports to a queue what happened to each volume.

    Args:
        queue: sampler of `val_data_loader`, whose batches are single volumes.
        kwargs: see `monai.engines.SupervisedEvaluator`.
    """

    def __init__(self, queue: VolumeQueue, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.queue = queue

    def run(self, global_epoch: int = 1) -> None:  # type: ignore[override]
        """Works until no volume is left; for errors see `Board.errors_told`."""
        with self.queue.board.errors_told():
            try:
                super().run(global_epoch)
            except BaseException:
                with suppress(OSError):  # a full disk may be the reason for the end
                    self.queue.write_list()
                raise

    def _iteration(self, engine: Any, batchdata: Mapping[str, Any]) -> dict:
        try:
            if FAULT in batchdata:
                raise VolumeError(batchdata[FAULT][0])
            output = super()._iteration(engine, dict(batchdata))
        except Exception as error:
            self.queue.skip(batchdata[SOURCE][0], error)
            return {}
        self.queue.count_written()
        return output
