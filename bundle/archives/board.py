"""Lets the processes of one job exchange counters, lists and an error through torchrun's own store.

No process group is needed, since each volume belongs to one process and nothing is computed together.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from typing import Any

import torch.distributed as distributed

from bundle.distributed.launcher import LaunchError, launched
from bundle.distributed.ranks import first_line, launcher_store
from bundle.run.errors import own_message, short_message
from bundle.run.names import printable
from bundle.run.signals import StopRequested

PIECE_CHARACTERS = 1 << 20  # the store refuses a message of 8 MiB
POLL_S = 0.2
MEET_S = 600


class JobError(RuntimeError):
    """A job whose processes cannot work together, or that an error in another process has ended."""


class Board:
    """The shared notes of a job: in memory for a single process, in a store for several.

    Args:
        store: reachable by all processes of the job; None = there is one process.
        rank: number of this process, from 0.
        world_size: processes of the job.
        timeout_s: seconds to wait for the other processes.
    """

    def __init__(
        self,
        store: distributed.Store | None = None,
        rank: int = 0,
        world_size: int = 1,
        timeout_s: float = 86400,
    ) -> None:
        self.store = distributed.HashStore() if store is None else store
        self.rank, self.world_size, self.timeout_s = rank, world_size, timeout_s

    @property
    def is_first(self) -> bool:
        """Tells whether this process lists the volumes and writes the summary."""
        return self.rank == 0

    def add(self, name: str, amount: int = 1) -> int:
        """Adds to a counter atomically, and returns its new value."""
        return self.store.add(name, amount)

    def count(self, name: str) -> int:
        """Returns a counter."""
        return self.store.add(name, 0)

    def wait_for(self, name: str, count: int) -> None:
        """Waits until a counter has reached `count`, in short steps so that a stop signal can end the wait.

        Raises:
            JobError: if it takes longer than `timeout_s`, or if an error has ended another process.
        """
        end = time.monotonic() + self.timeout_s
        while self.count(name) < count:
            self._raise_error_of_others()
            if time.monotonic() > end:
                raise JobError(
                    f"waited {self.timeout_s:g} s for other processes of this job; look into their logs, or "
                    "give a larger --store_timeout_s"
                )
            time.sleep(POLL_S)

    def _raise_error_of_others(self) -> None:
        """Ends a wait for a process that has failed; without torchrun nothing else would end it."""
        if self.store.check(["error"]):
            raise JobError(self.store.get("error").decode())

    def append(self, name: str, item: Any) -> None:
        """Adds an item, which JSON must be able to hold, to a list that all processes share."""
        self.store.set(f"{name}/{self.add(name)}", json.dumps(item))

    def items(self, name: str, after: int = 0) -> list[Any]:
        """Returns the items of all processes in their order of arrival, without the first `after`."""
        numbers = range(after + 1, self.count(name) + 1)
        return [json.loads(self.store.get(f"{name}/{number}")) for number in numbers]

    def publish(self, name: str, items: Sequence[Any]) -> None:
        """Hands a list, which JSON must be able to hold, to the other processes, if there are any."""
        if self.world_size == 1:
            return
        text = json.dumps(items)
        pieces = range(0, len(text), PIECE_CHARACTERS)
        for number, start in enumerate(pieces):
            self.store.set(f"{name}/{number}", text[start : start + PIECE_CHARACTERS])
        self.add(name, len(pieces))

    def receive(self, name: str) -> list[Any]:
        """Waits for the list that another process publishes.

        Raises:
            JobError: see `wait_for`.
        """
        self.wait_for(name, 1)
        pieces = [self.store.get(f"{name}/{number}").decode() for number in range(self.count(name))]
        return json.loads("".join(pieces))

    @contextmanager
    def errors_told(self) -> Iterator[None]:
        """Tells the other processes why this one failed, and raises what another one told.

        When one process fails, torchrun ends all others by a signal, which does not say why. Without torchrun
        the store disappears together with the first process.

        Raises:
            JobError: if a signal comes after another process has failed, or the store has gone.
        """
        try:
            yield
        except StopRequested as stop:
            with suppress(distributed.DistError):  # a store that has gone says nothing: the signal ends this
                if self.store.check(["error"]):
                    raise JobError(self.store.get("error").decode()) from stop
            raise
        except distributed.DistError as error:
            raise JobError(
                "the first process of this job has ended or does not answer, its own message says why; run "
                "the same command again to go on"
            ) from error
        except Exception as error:
            if not isinstance(error, JobError):
                self._tell_others(own_message(error) or short_message(error))
            raise

    def _tell_others(self, message: str) -> None:
        first_line = printable((message.splitlines() or [""])[0])
        with suppress(distributed.DistError):  # the error itself matters more
            self.store.set("error", f"process {self.rank} of {self.world_size}: {first_line}")


def part_of(board: Board, shard_index: int = 0, shard_count: int = 1) -> str:
    """Names the share of the work of this process, for its log and record.

    The first process of a job without shards has no need of one: its name is empty.
    """
    shard = f"shard_{shard_index}_of_{shard_count}" if shard_count > 1 else ""
    rank = "" if board.is_first else f"rank_{board.rank}"
    return "_".join(filter(None, (shard, rank)))


def launched_board(timeout_s: float = 86400) -> Board:
    """Joins the processes of a launcher without a process group; a single process gets a local board.

    Every process waits here until all have come, for at most 10 minutes.

    Args:
        timeout_s: seconds to wait for the other processes.

    Raises:
        LaunchError: if the processes do not meet, or torchrun has replaced some of them.
    """
    here = launched()
    return Board() if here.size == 1 else Board(_shared_store(), here.rank, here.size, timeout_s)


@cache  # a process joins only once, even if its config is evaluated several times
def _shared_store() -> distributed.Store:
    here, end = launched(), time.monotonic() + MEET_S
    try:
        store = distributed.PrefixStore("archive", launcher_store(timedelta(seconds=MEET_S)))
        n_joined = _meet(store, here.size, here.rank == 0, end)
    except (RuntimeError, ValueError, TimeoutError) as error:
        raise LaunchError(
            f"process {here.rank} of {here.size} did not meet the others ({first_line(error)}); see "
            "what they say, and whether MASTER_ADDR and MASTER_PORT can be reached"
        ) from error
    if n_joined > here.size:
        raise LaunchError(
            "torchrun has restarted processes that share a queue on several nodes, which the queue does not "
            "survive; start it again without --max-restarts, and it goes on where it stopped"
        )
    return store


def _meet(store: distributed.Store, world_size: int, is_first: bool, end: float) -> int:
    """Waits until all processes have joined, but not beyond the time `end`; returns how many have joined.

    Otherwise the first process, in which the store may live, could finish its work or refuse the job, and
    exit before another has connected. It also waits until all have read the count.
    """

    def wait_for(name: str) -> int:
        while (count := store.add(name, 0)) < world_size:
            if time.monotonic() > end:
                raise TimeoutError(f"{count} of {world_size} came within {MEET_S} s")
            time.sleep(POLL_S)
        return count

    store.add("joined", 1)
    n_joined = wait_for("joined")
    store.add("seen", 1)
    if is_first:
        wait_for("seen")
    return n_joined
