"""Things made ahead by a thread: in order, errors in their place, nothing left running."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator

import pytest

from mme_targets.ahead import Ahead


def running() -> int:
    return sum(thread.name == "ahead" for thread in threading.enumerate())


def gone(before: int) -> bool:
    """Whether the threads end soon."""
    until = time.monotonic() + 10
    while running() > before and time.monotonic() < until:
        time.sleep(0.01)
    return running() <= before


def test_in_order_and_no_more_than_asked_for() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(20):
            made.append(i)
            yield i

    taken = []
    with Ahead(items(), 2) as ahead:
        for i in ahead:
            taken.append(i)
            assert made[-1] <= i + 4, "two wait, one is in the making, one was just taken"
    assert taken == list(range(20))
    assert list(ahead) == []


def test_it_starts_at_once_in_a_thread_of_its_own() -> None:
    begun = threading.Event()
    where: list[threading.Thread] = []

    def items() -> Iterator[int]:
        where.append(threading.current_thread())
        begun.set()
        yield 1

    with Ahead(items()) as ahead:
        assert begun.wait(10)
        assert list(ahead) == [1]
    assert where[0] is not threading.current_thread()


def test_errors_come_where_the_item_would_have() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    with Ahead(items()) as ahead:
        assert next(ahead) == 1
        with pytest.raises(OSError, match="the disk is gone"):
            next(ahead)
        with pytest.raises(StopIteration):
            next(ahead)


def test_closing_ends_the_thread_and_closes_the_generator() -> None:
    before, closed = running(), threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.set()

    with Ahead(items()) as ahead:
        assert next(ahead) == 0
    assert closed.is_set()
    assert gone(before)


def test_one_that_is_forgotten_ends() -> None:
    before = running()
    ahead = Ahead(iter(range(1000)))
    assert next(ahead) == 0
    del ahead
    gc.collect()
    assert gone(before)
