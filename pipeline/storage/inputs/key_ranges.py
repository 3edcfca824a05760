"""Lists the sorted keys of a store by many requests at once, although a store can only list the keys after a key.

Each request gives one page. Where more keys follow a page and threads are idle, the rest of the range is cut into
several ranges. The page's own keys suggest where to cut. A range without keys costs one empty answer.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import pairwise
from typing import Any, NamedTuple

from schemas.errors import InputError

_FIRST, _LAST = 0x20, 0x7F
"""Code points between which the characters of most keys lie."""
_SURROGATES = range(0xD800, 0xE000)
"""Code points that are no characters and can't stand in a key."""

Item = dict[str, Any]
"""The store's description of an object; ``Key`` has the object's name."""


class Page(NamedTuple):
    """The first objects after a key, and whether more follow."""

    items: list[Item]
    more: bool


class _Range(NamedTuple):
    after: str
    """The key before the range."""
    until: str | None
    """The last key that the range may have; None where the range has no end."""


def list_ranges(first: Page, list_page: Callable[[str], Page], prefix: str, threads: int) -> Iterator[Item]:
    """Yield every object whose key begins with ``prefix``, each once, in no order.

    ``list_page(key)`` returns the page after a key, and ``first`` is the first page of all. At most ``threads`` pages
    are in memory. Raises InputError for a page whose keys do not ascend by code points from the requested key; errors
    of ``list_page`` pass through.
    """
    running: dict[Future[Page], _Range] = {}
    with ThreadPoolExecutor(threads, thread_name_prefix="list") as pool:

        def go_on(page: Page, asked: _Range) -> list[Item]:
            """Ask for the rest of a range, and return the objects of its page that lie in the range."""
            if not is_ascending(page.items, asked.after):
                raise InputError(f"the store does not list keys in their order after {asked.after!r}; use a manifest")
            items = [item for item in page.items if asked.until is None or item["Key"] <= asked.until]
            if page.more and len(items) == len(page.items) and items and items[-1]["Key"] != asked.until:
                start, last = items[0]["Key"], items[-1]["Key"]
                cuts = find_cuts(start, last, asked.until, len(prefix), threads - len(running) - 1)
                for after, until in zip([last, *cuts], [*cuts, asked.until], strict=True):
                    running[pool.submit(list_page, after)] = _Range(after, until)
            return items

        try:
            yield from go_on(first, _Range("", None))
            while running:
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    asked = running.pop(done)
                    yield from go_on(done.result(), asked)
        finally:
            pool.shutdown(cancel_futures=True)


def is_ascending(items: list[Item], after: str = "") -> bool:
    """Return whether the keys ascend and the first key follows ``after``."""
    keys = [after, *(item["Key"] for item in items)]
    return all(one < other for one, other in pairwise(keys))


def find_cuts(start: str, last: str, until: str | None, shared: int, most: int) -> list[str]:
    """Return at most ``most`` keys between ``last`` and ``until``, ascending, that may divide what lies between them.

    A page went from ``start`` to ``last``, and all keys share their first ``shared`` characters. Half of the cuts each
    stand behind all keys that share a number of characters with ``last``; that number goes up to what the page's own
    keys share. These cuts find at once how far the keys reach, for keys of any form. The other cuts divide evenly
    the characters that may follow where the two ends of the range first differ. They find keys that begin in many
    ways.
    """
    if until is not None:
        shared = max(shared, _agreeing(last, until))
    deep = max(shared, _agreeing(start, last))
    wanted = (most + 1) // 2
    positions = {shared + (deep - shared) * step // max(1, wanted - 1) for step in range(wanted)}
    cuts = {cut for at in positions if (cut := _behind(last[: at + 1])) and (until is None or cut < until)}
    for at in range(shared, len(last) + 2):
        if even := _evenly(last, until, at, most - len(cuts)):
            cuts.update(even)
            break
    return sorted(cuts)


def _agreeing(one: str, other: str) -> int:
    """Return the number of characters that two keys share before they first differ."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _behind(head: str) -> str | None:
    """Return the first key, of the length of ``head``, behind all keys that begin with ``head``; None without one."""
    code = ord(head[-1]) + 1
    return head[:-1] + chr(code) if code <= 0x10FFFF and code not in _SURROGATES else None


def _evenly(last: str, until: str | None, at: int, most: int) -> list[str]:
    """Return at most ``most`` keys that share ``last[:at]`` and divide evenly the characters that may follow it."""
    head = last[:at]
    low = ord(last[at]) if at < len(last) else _FIRST - 1
    high = _LAST if low < _LAST else 0x110000
    if until is not None and until.startswith(head):
        if at >= len(until):
            return []
        high = ord(until[at]) + (len(until) > at + 1)
    parts = min(most + 1, high - low)
    codes = {low + (high - low) * part // parts for part in range(1, parts)}
    return [head + chr(code) for code in codes if code not in _SURROGATES]
