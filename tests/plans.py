"""Listings with rows that the tests give, plans made from the listings, and the contents of the plans."""

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from pipeline.storage.filesystems import connect
from pipeline.storage.inputs.listing import Listing, image_id
from pipeline.storage.lake.plan.planning import Plan, make_plan, read_plan_slice
from schemas.tables import PLAN
from tests.listings import LOCAL

DAY = datetime(2024, 1, 1, tzinfo=UTC)
DONE = pa.schema([PLAN.field(name) for name in ("image_id", "etag", "size_bytes", "modified_at")])


def batch_of(rows: list[dict]) -> pa.RecordBatch:
    empty = dict.fromkeys(PLAN.names)
    filled = [
        {**empty, "image_id": image_id(row["uri"]), "path": row["uri"], "size_bytes": 1, "modified_at": DAY, **row}
        for row in rows
    ]
    return pa.RecordBatch.from_pylist(filled, schema=PLAN)


def listing_of(*batches: list[dict], ordered: bool = True) -> Listing:
    return Listing("manifest", (batch_of(rows) for rows in batches), ordered, Counter({".txt": 2}))


def named(*names: str) -> list[dict]:
    return [{"uri": name} for name in names]


def done_of(*rows: dict) -> Iterator[pa.RecordBatch]:
    yield batch_of(list(rows)).select(DONE.names)


def plan_of(tmp_path: Path, listing: Listing, done: Iterable[pa.RecordBatch] = (), **options) -> Plan:
    fs, root = connect(str(tmp_path / "out"), LOCAL)
    return make_plan(listing, done, fs, root, "_runs/r/plan", **{"rows_per_slice": 100, **options})


def planned(tmp_path: Path, plan: Plan) -> list[dict]:
    fs, root = connect(str(tmp_path / "out"), LOCAL)
    tables = [read_plan_slice(fs, root, one) for one in plan.slices]
    assert [len(table) for table in tables] == [one.rows for one in plan.slices]
    assert all(table.schema.equals(PLAN) for table in tables)
    return [row for table in tables for row in table.to_pylist()]


def uris(tmp_path: Path, plan: Plan) -> list[str]:
    return [row["uri"] for row in planned(tmp_path, plan)]
