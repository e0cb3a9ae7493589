"""Lists the volumes of one job, identically in all of its processes."""

from monai.config import PathLike

from bundle.archives.board import Board
from bundle.data.cases.patients import Case
from bundle.data.cases.split import inference_cases


def archive_cases(
    dataset_dir: PathLike, board: Board, on_error: str = "stop", shard_index: int = 0, shard_count: int = 1
) -> list[Case]:
    """Lists volumes in the first process of a job and hands the list to the others.

    The data set is searched only once, so a number means the same volume in all processes even if files are
    added in the meantime.

    Args:
        dataset_dir: see `inference_cases`, also for the last three arguments.
        board: of the job.
        on_error: `stop` or `skip`.
        shard_index: which share of the volumes, from 0.
        shard_count: shares.

    Raises:
        See `inference_cases`; in processes that wait for the list also JobError.
    """
    with board.errors_told():
        if not board.is_first:
            return board.receive("cases")
        cases = inference_cases(dataset_dir, on_error, shard_index, shard_count)
        board.publish("cases", cases)
    return cases
