"""`pipelines.training.ranks`: numbers that ranks take, each by one of them, the next one to whoever asks first."""

from __future__ import annotations

import contextlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from pipelines.ports import free_port
from pipelines.training.ranks import Turns


@pytest.fixture
def store() -> dist.TCPStore:
    return dist.TCPStore(
        "127.0.0.1", free_port(), is_master=True, timeout=timedelta(seconds=30), wait_for_workers=False
    )


def ranks(store: dist.TCPStore, count: int) -> list[Turns]:
    """As many ranks as threads, each with a connection of its own."""
    return [Turns(store.clone(), "step 1", (rank, count), contextlib.nullcontext) for rank in range(count)]


@pytest.mark.parametrize(("count", "numbers"), [(1, 5), (2, 1), (3, 200), (4, 4)])
def test_each_number_comes_once(store, count: int, numbers: int) -> None:
    with ThreadPoolExecutor(count) as pool:
        taken = list(pool.map(lambda turns: list(turns.up_to(numbers)), ranks(store, count)))
    assert Counter(number for hand in taken for number in hand) == Counter(range(numbers))
    for rank, hand in enumerate(taken):
        assert hand[:1] == [rank][: rank < numbers] and hand == sorted(hand)


def test_a_slow_rank_leaves_the_rest_to_the_others(store) -> None:
    slow, quick = ranks(store, 2)
    first = slow.up_to(10)
    assert next(first) == 0  # and works on it while the other does all that is left
    assert list(quick.up_to(10)) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert list(first) == []


def test_who_stops_leaves_none(store) -> None:
    one, other = ranks(store, 2)
    hand = other.up_to(10)
    assert next(hand) == 1
    one.end()
    assert list(hand) == []


def test_a_rank_alone_needs_no_store() -> None:
    alone = Turns(None, "step 1", (0, 1), contextlib.nullcontext)
    hand = alone.up_to(4)
    assert [next(hand), next(hand)] == [0, 1]
    alone.end()
    assert list(hand) == []
