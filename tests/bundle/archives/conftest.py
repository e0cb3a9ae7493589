"""Boards that share a store as the processes of one torchrun do."""

import datetime

import pytest
from torch import distributed

from bundle.archives.board import Board


@pytest.fixture
def boards():
    """Makes the boards of a job of several processes, here in one."""
    servers = []

    def make(world_size: int, timeout_s: float = 10) -> list[Board]:
        limit = datetime.timedelta(seconds=10)
        servers.append(distributed.TCPStore("127.0.0.1", 0, is_master=True, timeout=limit))
        clients = [
            distributed.TCPStore("127.0.0.1", servers[-1].port, is_master=False, timeout=limit)
            for _ in range(world_size)
        ]
        return [Board(client, rank, world_size, timeout_s) for rank, client in enumerate(clients)]

    return make
