import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch import distributed

from bundle.archives.board import Board, JobError, _meet, launched_board, part_of
from bundle.run.signals import StopRequested

NOT_UTF8 = b"/data/caf\xe9.nii.gz".decode(errors="surrogateescape")


def test_every_process_gets_the_list_of_the_first_whatever_its_names_and_its_length(boards):
    first, second = boards(2)
    cases = [{"image": NOT_UTF8, "patient": ""}, {"image": "x" * 10_000_000, "patient": "p\u00e9"}]

    first.publish("cases", cases)

    assert second.receive("cases") == cases


def test_a_process_that_never_comes_ends_the_waiting_in_words(boards):
    (first,) = boards(1, timeout_s=0.1)

    with pytest.raises(JobError, match=r"waited 0.1 s for other processes .* --store_timeout_s"):
        first.wait_for("ended", 1)


def test_items_come_from_all_processes_and_the_known_ones_can_be_left_out(boards):
    first, second = boards(2)
    first.append("skips", ["a", "1"])
    second.append("skips", ["b", "2"])

    assert first.items("skips") == second.items("skips") == [["a", "1"], ["b", "2"]]
    assert first.items("skips", after=1) == [["b", "2"]]


def test_the_first_process_says_what_has_ended_another_one(boards):
    first, second = boards(2)
    with pytest.raises(ValueError), second.errors_told():
        raise ValueError("no such voxel")

    with pytest.raises(JobError, match="^process 1 of 2: ValueError: no such voxel$"), first.errors_told():
        raise StopRequested(signal.SIGTERM)


def test_an_error_of_one_process_ends_the_waiting_of_the_others_in_its_own_words(boards):
    first, second = boards(2)
    with pytest.raises(ValueError), second.errors_told():
        raise ValueError(f"{NOT_UTF8}: no such voxel\nand so on")

    with pytest.raises(JobError, match=r"^process 1 of 2: ValueError: /data/caf\S+: no such voxel$"):
        first.wait_for("ended", 1)


def test_an_error_is_itself_even_if_nobody_can_be_told(boards, monkeypatch):
    (board,) = boards(1)

    def fail(*_):
        raise distributed.DistNetworkError("Broken pipe")

    monkeypatch.setattr(board, "store", type("Gone", (), {"set": fail})())
    with pytest.raises(ValueError, match="no such voxel"), board.errors_told():
        raise ValueError("no such voxel")


def test_a_process_whose_store_has_gone_says_so_and_how_to_go_on():
    with pytest.raises(JobError, match="has ended or does not answer.* run the same command again"):
        with Board().errors_told():
            raise distributed.DistNetworkError("Connection reset by peer")


def test_a_signal_stays_a_signal_even_if_the_store_has_gone(boards, monkeypatch):
    (board,) = boards(1)

    def fail(*_):
        raise distributed.DistNetworkError("Broken pipe")

    monkeypatch.setattr(board, "store", type("Gone", (), {"check": fail})())
    with pytest.raises(StopRequested), board.errors_told():
        raise StopRequested(signal.SIGTERM)


def test_a_signal_alone_stays_a_signal():
    with pytest.raises(StopRequested), Board().errors_told():
        raise StopRequested(signal.SIGTERM)


def test_a_process_without_a_launcher_has_a_board_of_its_own(monkeypatch):
    for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)

    board = launched_board()

    assert (board.rank, board.world_size, board.is_first) == (0, 1, True)
    assert board.add("claimed") == 1 and launched_board().add("claimed") == 1


@pytest.mark.parametrize(
    ("rank", "shard", "name"),
    [(0, (0, 1), ""), (2, (0, 1), "rank_2"), (0, (3, 8), "shard_3_of_8"), (2, (3, 8), "shard_3_of_8_rank_2")],
)
def test_a_part_is_named_by_what_sets_it_apart(rank, shard, name):
    assert part_of(Board(rank=rank, world_size=4), *shard) == name


def test_no_process_starts_before_all_have_come(boards):
    """The first, which may hold the store, could otherwise finish before the second connects."""
    first, second = boards(2)
    with ThreadPoolExecutor(1) as others:
        waiting = others.submit(_meet, first.store, 2, True, time.monotonic() + 60)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=1)

        assert _meet(second.store, 2, False, time.monotonic() + 60) == 2 and waiting.result(timeout=10) == 2


def test_the_first_process_stays_until_all_have_seen_that_all_have_come(boards):
    """The others look a few times a second, and the store may end with the first."""
    first, second = boards(2)
    second.store.add("joined", 1)
    with ThreadPoolExecutor(1) as others:
        waiting = others.submit(_meet, first.store, 2, True, time.monotonic() + 60)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=1)

        second.store.add("seen", 1)
        assert waiting.result(timeout=10) == 2


def test_a_process_that_does_not_come_to_the_meeting_is_not_waited_for_without_end(boards):
    (first,) = boards(1)

    with pytest.raises(TimeoutError, match="1 of 2 came within"):
        _meet(first.store, 2, True, time.monotonic())
