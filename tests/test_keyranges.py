"""A sorted space of keys, listed in ranges: the same keys as one chain gives, each once, whatever they look like."""

import threading
import time
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.storage.inputs.key_ranges import Page, find_cuts, list_ranges
from schemas.errors import InputError

CHARACTERS = st.characters(exclude_categories=["Cs"]) | st.sampled_from("/0123456789ab~\x7f\ud7ff\U0010ffff")
KEYS = st.lists(st.text(CHARACTERS | st.sampled_from("01"), min_size=1, max_size=6), unique=True).map(sorted)


class Store:
    """Keys that are given out page by page, as S3 does, and what was asked."""

    def __init__(self, keys: Sequence[str], page_size: int, wait_s: float = 0.0) -> None:
        self.keys, self.page_size, self.wait_s = sorted(keys), page_size, wait_s
        self.asked: list[str] = []
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()

    def page(self, after: str) -> Page:
        with self._lock:
            self.asked.append(after)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(self.wait_s)
        start = bisect_right(self.keys, after)
        keys = self.keys[start : start + self.page_size]
        with self._lock:
            self.at_once -= 1
        return Page([{"Key": key} for key in keys], start + self.page_size < len(self.keys))

    def list(self, prefix: str = "", threads: int = 8) -> list[str]:
        return [item["Key"] for item in list_ranges(self.page(""), self.page, prefix, threads)]


@given(KEYS, st.integers(1, 5), st.integers(1, 8))
def test_ranges_give_what_one_chain_gives(keys, page_size, threads):
    store = Store([f"p/{key}" for key in keys], page_size)
    assert sorted(store.list("p/", threads)) == store.keys
    assert store.most_at_once <= threads


@given(KEYS.filter(lambda keys: len(keys) >= 2), st.data(), st.integers(0, 20))
def test_cuts_lie_inside_in_order(keys, data, most):
    place = data.draw(st.integers(1, len(keys) - 1))
    start = data.draw(st.sampled_from(keys[:place]))
    last, until = keys[place - 1], data.draw(st.sampled_from([None, *keys[place:]]))
    cuts = find_cuts(f"p/{start}", f"p/{last}", until and f"p/{until}", 2, most)
    assert len(cuts) <= most
    assert all(one < other for one, other in pairwise([f"p/{last}", *cuts, *([f"p/{until}"] if until else [])]))
    assert all(cut.startswith("p/") and cut.encode() for cut in cuts)


NUMBERS = range(20_000)


@pytest.mark.parametrize(
    "name", ["{:08d}.jpg", "img_{}.jpg", "a/long/path/that/all/share/frame_{:012d}.jpg", "{0:03x}/{0:x}"]
)
def test_usual_names_are_listed_side_by_side(name):
    """One chain of these keys takes 200 steps; a step is what one answer takes."""
    store = Store([f"p/{name.format(number * 7919 % 20_000)}" for number in NUMBERS], 100, wait_s=0.004)
    assert sorted(store.list("p/", threads=16)) == store.keys
    assert len(store.asked) < 3 * 200
    assert store.most_at_once == 16


def test_a_small_folder_is_one_request():
    store = Store(["p/a", "p/b"], 2)
    assert store.list("p/") == ["p/a", "p/b"]
    assert store.asked == [""]


def test_a_store_that_loses_its_order_or_ignores_the_key_is_an_error():
    store = Store([f"{number:04d}" for number in range(100)], 10)
    with pytest.raises(InputError, match="does not list keys in their order after"):
        list(list_ranges(store.page(""), lambda after: store.page(""), "", 4))


def test_a_failing_page_ends_the_listing():
    store = Store([f"{number:04d}" for number in range(100)], 10)

    def fail(after: str) -> Page:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(list_ranges(store.page(""), fail, "", 4))


def test_an_abandoned_listing_asks_no_further():
    store = Store([f"{number:04d}" for number in range(1000)], 10)
    found = list_ranges(store.page(""), store.page, "", 4)
    assert next(found)["Key"] == "0000"
    found.close()
    assert len(store.asked) <= 5
