"""Work ahead of the consumer: in order, bounded, with errors in their turn."""

import threading
from collections.abc import Iterator
from itertools import count

import pytest

from pipeline.storage.prefetch import chain_ahead, map_ahead


def test_results_come_in_order_and_no_more_calls_wait_than_threads():
    begun: list[int] = []

    def square(number: int) -> int:
        begun.append(number)
        return number * number

    results = map_ahead(square, count(), 4)
    for number in range(50):
        assert next(results) == number * number
        assert len(begun) <= number + 1 + 4
    results.close()
    assert list(map_ahead(square, [], 4)) == []


def test_calls_run_side_by_side():
    together = threading.Barrier(4, timeout=10)
    assert len(list(map_ahead(lambda _: together.wait(), range(8), 4))) == 8


def test_items_may_come_from_results():
    class Countdown(list[int]):
        def __iter__(self) -> Iterator[int]:
            return self

        def __next__(self) -> int:
            if not self:
                raise StopIteration
            return self.pop()

    left, seen = Countdown([5]), []
    for number in map_ahead(lambda number: number, left, 3):
        seen.append(number)
        left.extend([number - 1] * (number > 0))
    assert seen == [5, 4, 3, 2, 1, 0]


def test_an_error_comes_in_its_turn_and_ends_the_rest():
    def check(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number

    seen = []
    with pytest.raises(ValueError, match="three"):
        seen.extend(map_ahead(check, range(10), 4))
    results = map_ahead(check, range(10), 4)
    assert [next(results) for _ in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("lengths", [[0], [1, 0, 7, 3, 6, 2], [3, 3, 3], [10, 1], []])
def test_sources_follow_each_other_whole(lengths):
    sources = [[(source, item) for item in range(length)] for source, length in enumerate(lengths)]
    assert list(chain_ahead(sources, 2, 3)) == [item for source in sources for item in source]


def test_a_source_is_read_ahead_by_a_chunk_only():
    taken = [0] * 10

    def source(index: int) -> Iterator[int]:
        for item in range(100):
            taken[index] += 1
            yield item

    items = chain_ahead(map(source, range(10)), 2, 3)
    assert next(items) == 0
    items.close()
    assert sum(taken) <= 3 * 3
    assert taken[2:] == [0] * 8


def test_a_failing_source_fails_in_its_turn(monkeypatch):
    def source(index: int) -> Iterator[int]:
        yield index
        if index == 1:
            raise ValueError("one")

    items = chain_ahead(map(source, range(3)), 3)
    assert next(items) == 0
    with pytest.raises(ValueError, match="one"):
        next(items)


@pytest.mark.parametrize("chained", [False, True])
def test_a_dropped_iterator_waits_for_no_call(chained):
    begun, go_on = threading.Event(), threading.Event()

    def call(number: int) -> int:
        if number:
            begun.set()
            go_on.wait(60)
        return number

    def source(number: int) -> Iterator[int]:
        yield call(number)

    results = chain_ahead(map(source, range(4)), 2) if chained else map_ahead(call, range(4), 2)
    assert next(results) == 0
    assert begun.wait(60)
    results.close()
    assert not go_on.is_set(), "the second call goes on alone: a dropped generator may be closed while a thread starts"
    go_on.set()
