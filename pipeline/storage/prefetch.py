"""Iterators with threads that work ahead of the consumer; results keep their order, and memory is bounded."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

CHUNK = 10_000
"""Most items of a source that ``chain_ahead`` reads in advance; a usual shard has no more images."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def map_ahead(function: Callable[[_Item], _Result], items: Iterable[_Item], threads: int) -> Iterator[_Result]:
    """Yield ``function(item)`` of each item, in the items' order.

    At most ``threads`` calls run at once; a result that the caller has not taken yet counts as a running call. The
    exception of a call is raised when its result is due, and calls that have not begun by then are cancelled.
    """
    remaining = iter(items)
    with _pool(threads) as pool:
        calls: deque[Future[_Result]] = deque()
        while True:
            calls.extend(pool.submit(function, item) for item in islice(remaining, threads - len(calls)))
            if not calls:
                return
            yield calls.popleft().result()


def chain_ahead(sources: Iterable[Iterable[_Item]], threads: int, chunk_items: int = CHUNK) -> Iterator[_Item]:
    """Yield all items of the first source, then all of the second, and so on, while threads read the next sources.

    At most ``chunk_items`` items of each of ``threads`` sources are in memory. The exception of a source is raised when
    the items of the source are due.
    """
    remaining = iter(sources)
    with _pool(threads) as pool:

        def ahead(items: Iterator[_Item]) -> tuple[Iterator[_Item], Future[list[_Item]]]:
            return items, pool.submit(lambda: list(islice(items, chunk_items)))

        begun: deque[tuple[Iterator[_Item], Future[list[_Item]]]] = deque()
        while True:
            begun.extend(ahead(iter(source)) for source in islice(remaining, threads - len(begun)))
            if not begun:
                return
            items, taken = begun.popleft()
            chunk = taken.result()
            if len(chunk) == chunk_items:
                begun.appendleft(ahead(items))
            yield from chunk


@contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Give threads to a generator, and cancel the calls that have not begun when the generator ends.

    The end of a generator waits for the running calls, except where the consumer closes or drops it: the garbage
    collector may close a dropped generator while it starts a thread, and waiting for other threads there never ends.
    """
    pool, wait = ThreadPoolExecutor(threads), True
    try:
        yield pool
    except GeneratorExit:
        wait = False
        raise
    finally:
        pool.shutdown(wait=wait, cancel_futures=True)
