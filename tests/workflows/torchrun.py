"""Command lines of torchrun. Not a test."""

import sys


def torchrun(*words: object, restarts: int = 0) -> list[str]:
    """Two processes on this machine that run `words`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return [*command, "--max_restarts", str(restarts), "--shutdown_timeout", "120", *map(str, words)]
