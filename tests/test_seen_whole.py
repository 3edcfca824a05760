"""Whoever reads an output by glob sees an image when all of its rows are there, and not without them."""

import pytest

from pipeline.storage.lake.commit import remove_leftovers
from pipeline.storage.lake.lease import Lease
from schemas.errors import StoreError
from tests.fake_lake import rows_of
from tests.faulty_store import stored_lake

RUN = "20261130T020000.000-abcdef"


def test_images_are_shown_last_and_removed_first(monkeypatch):
    lake = stored_lake(monkeypatch)
    lake.run({"s3://b/z.jpg": "v1"})
    with Lease.acquire(lake.fs, lake.root, RUN) as lease:
        lake.store.requests.clear()
        lake.store.down = lambda verb, path: verb == "put" and "/commits/" in path
        with pytest.raises(StoreError, match="reduce your request rate"):
            lake.commit(RUN, lease.generation, "000000", rows_of(RUN, {"s3://b/0.jpg": "v1"}))
        shown = tables_of(lake, "put")
        assert (len(shown), shown[-1]) == (4, "images")
        lake.store.down = lambda verb, path: False
        lake.store.requests.clear()
        strays, _ = remove_leftovers(lake.fs, lake.root, lease.generation)
    removed = tables_of(lake, "delete")
    assert (len(strays), len(removed), removed[0]) == (4, 4, "images")


def tables_of(lake, verb):
    """Return the tables of the data files that were asked for, in order."""
    paths = [path for asked, path in lake.store.requests if asked == verb and "/part-" in path]
    return [path.split("/")[2] for path in paths]
