"""Iterators that work ahead of their consumer in threads: results in order, memory bounded."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

CHUNK = 10_000
"""Items that ``chain_ahead`` takes from a source before that source has its turn: all images of a usual shard."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def map_ahead(function: Callable[[_Item], _Result], items: Iterable[_Item], threads: int) -> Iterator[_Result]:
    """Yield ``function(item)`` of each item, in order; at most ``threads`` calls run, or wait to be taken, at once.

    What a call raises is raised in its turn; calls that have not begun by then are left out.
    """
    remaining = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        calls: deque[Future[_Result]] = deque()
        try:
            while True:
                calls.extend(pool.submit(function, item) for item in islice(remaining, threads - len(calls)))
                if not calls:
                    return
                yield calls.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def chain_ahead(sources: Iterable[Iterable[_Item]], threads: int) -> Iterator[_Item]:
    """Yield the items of each source in turn, while the next ones are read: at most CHUNK items of ``threads`` sources.

    What a source raises is raised in its turn.
    """
    remaining = iter(sources)
    with ThreadPoolExecutor(threads) as pool:

        def ahead(items: Iterator[_Item]) -> tuple[Iterator[_Item], Future[list[_Item]]]:
            return items, pool.submit(lambda: list(islice(items, CHUNK)))

        begun: deque[tuple[Iterator[_Item], Future[list[_Item]]]] = deque()
        try:
            while True:
                begun.extend(ahead(iter(source)) for source in islice(remaining, threads - len(begun)))
                if not begun:
                    return
                items, taken = begun.popleft()
                chunk = taken.result()
                if len(chunk) == CHUNK:
                    begun.appendleft(ahead(items))
                yield from chunk
        finally:
            pool.shutdown(cancel_futures=True)
