"""Finds the sentence that a user should read in a chain of errors."""

from __future__ import annotations

import errno
import re

import torch.distributed as dist

EXIT_REFUSED = 3  # exit code of a command that has skipped unusable volumes and done all others
OUR_PACKAGES = ("bundle", "transforms", "scripts")
_MONAI_WRAPPER = re.compile(r"Failed to (instantiate|evaluate)|applying transform")
# A data loading process passes on one text: a traceback with the error's dotted class and message in it.
_OURS_IN_TEXT = re.compile(
    rf"^(?:{'|'.join(OUR_PACKAGES)})\.[\w.]+: (.*?)(?=\n\n|\Z)", re.MULTILINE | re.DOTALL
)
# What NumPy, torch on a CPU and Python say when memory runs out.
_NO_MEMORY = re.compile(r"Unable to allocate|can't allocate memory")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_READER_DIED = re.compile(r"DataLoader worker \(pid")
# How gloo says that a rank does not answer; NCCL and the store have error classes for it.
_RANK_LOST = re.compile(r"gloo/|Connection closed by peer|Connection reset by peer")


def own_message(error: BaseException) -> str | None:
    """Returns the message of the first error class of this project among `error` and its causes.

    Returns:
        None if there is no such error in the chain, that is, if the traceback is needed to understand it.
    """
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C; what had been written is whole"
    for link in chain_of(error):
        passed_on = _OURS_IN_TEXT.search(str(link)) if "Original Traceback" in str(link) else None
        if passed_on:
            return passed_on[1].strip()
        if _READER_DIED.match(str(link)):
            return (
                "`num_workers`: a process that reads patches was killed, usually out of memory; set "
                "fewer with --num_workers and go on with --resume_from_checkpoint auto"
            )
        if type(link).__module__.partition(".")[0] in OUR_PACKAGES:
            return str(link)
        if is_rank_lost(link):
            return (
                "another process of this run has ended or does not answer; its own message says why; go on "
                "with --resume_from_checkpoint auto"
            )
        message = _of_the_machine(link)
        if message is not None:
            return message
    return None


def is_rank_lost(error: BaseException) -> bool:
    """Tells whether an error says that another rank has gone."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and _RANK_LOST.search(str(error)) is not None
    )


def _of_the_machine(error: BaseException) -> str | None:
    """Describes errors of the machine that any code can meet: no memory, no room on a disk."""
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
        reason = str(error).split("\n")[0].strip()
        return (
            f"out of memory{f' ({reason})' if reason else ''}; end other programs, use fewer "
            "--num_workers or smaller volumes, or a machine with more memory"
        )
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}cannot be written ({error.strerror}); make room or write to another disk"
    return None


def short_message(error: BaseException) -> str:
    """Returns class and message of what went wrong, without the RuntimeErrors that MONAI wraps around it."""
    chain = chain_of(error)
    inner = [
        link for link in chain if not (isinstance(link, RuntimeError) and _MONAI_WRAPPER.match(str(link)))
    ]
    first = (inner or chain)[0]
    return f"{type(first).__name__}: {first}"


def chain_of(error: BaseException) -> list[BaseException]:
    """Returns an error and what it was raised from, the outermost first."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    return chain
