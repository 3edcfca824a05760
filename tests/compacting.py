"""What the tests of ``camlake compact`` share: an output to compact, and what its readers find in it."""

from datetime import timedelta

import duckdb

from jobs.compact import run
from jobs.terminal.console import Screen
from pipeline.outputs import reader
from pipeline.storage.lake import records
from pipeline.storage.lake.commit import done_images
from pipeline.storage.lake.records import load_compactions, write_record
from schemas.options.compact import CompactConfig
from schemas.reasons import Reason
from schemas.tables import TABLES
from tests.fake_lake import MODEL, FakeLake

OTHER = "other-87654321"
WRITTEN = ("images", "boxes", "heatmaps", "features", "quarantine")


def fill(lake: FakeLake) -> FakeLake:
    """Write many small files, a changed image, one that was rejected later, one that was annotated later."""
    lake.run(
        {"a": "v1", "b": "v0", "c": "v1", "d": "v1"}, {"bad": Reason.CORRUPT, "late": Reason.FETCH_FAILED}, tasks=4
    )
    lake.run({"a": "v2", "late": "v1"}, {"b": Reason.EMPTY}, tasks=2)
    lake.run({"e": "v1"})
    return lake


def compact(lake: FakeLake, **options) -> None:
    """Compact an output with no grace period, unless ``options`` say otherwise."""
    run(CompactConfig.resolve({"out": lake.out, "grace": "0s", **options}), Screen())


def rows(lake: FakeLake) -> dict[str, list]:
    """Return the current rows of every table, as a reader gets them."""
    with reader.open(lake.out, model="*", endpoint_url=lake.storage.endpoint_url) as opened:
        found = {table: opened.arrow(table).to_pylist() for table in TABLES}
    return {table: sorted(map(str, rows)) for table, rows in found.items()}


def globbed(lake: FakeLake, table: str) -> int:
    """Return the rows that plain DuckDB finds in the folder of a table."""
    return duckdb.sql(f"SELECT count(*) FROM '{lake.out}/{table}/**/*.parquet'").fetchall()[0][0]


def done_ids(lake: FakeLake, model: str = MODEL) -> set[str]:
    """Return the ids of the images that annotate need not work on."""
    batches = done_images(lake.fs, lake.root, model)
    return {image_id for batch in batches for image_id in batch["image_id"].to_pylist()}


def age(lake: FakeLake) -> None:
    """Make the newest compaction two days old."""
    one = load_compactions(lake.fs, lake.root)[-1]
    old = one.model_copy(update={"since": one.since - timedelta(days=2)})
    write_record(lake.fs, records.compaction_path(lake.root, one), old)
