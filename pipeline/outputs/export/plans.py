"""Where the pictures of an output lie: the plans of its runs, as one table in the output's DuckDB."""

from collections.abc import Iterator

import duckdb
import pyarrow as pa
from fsspec import AbstractFileSystem

from pipeline.outputs.reader import Lake
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.encoding import from_parquet
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.records import load_runs
from pipeline.storage.lake.whole_objects import list_dir, read_whole
from schemas.options.config import StorageConfig
from schemas.options.rebox import MAPS_OF
from schemas.runs import RunManifest
from schemas.tables import PLAN

PLAN_TABLE = "camlake_plans"
_COLUMNS = ["image_id", "etag", "size_bytes", "modified_at", "path", "offset"]


def add_plans(lake: Lake, out: str, storage: StorageConfig) -> None:
    """Add PLAN_TABLE with path and offset of each version of each image, as the last run planned it.

    The plans of a run of rebox don't say where its pictures lie; those of the output do whose maps it cut. Raises
    StoreError where a plan, or that output, can't be read.
    """
    con = lake.connection()
    empty = PLAN.empty_table().select(_COLUMNS)
    _insert(con, "CREATE TABLE planned AS SELECT *, '' AS run_id FROM part", empty)
    for fs, root, run in _annotating_runs(out, storage, lake.runs):
        paths = LakePaths(root)
        for path in list_dir(fs, paths.full(paths.plan_dir(run.run_id))):
            part = from_parquet(read_whole(fs, path), path, _COLUMNS)
            _insert(con, f"INSERT INTO planned SELECT *, '{run.run_id}' FROM part", part)
    con.execute(
        f'CREATE TABLE {PLAN_TABLE} AS SELECT * EXCLUDE (place), place.path AS path, place.byte AS "offset" FROM ('
        "SELECT image_id, etag, size_bytes, modified_at, max_by({'path': path, 'byte': \"offset\"}, run_id) AS place"
        " FROM planned GROUP BY ALL)"
    )
    con.execute("DROP TABLE planned")


def _annotating_runs(
    out: str, storage: StorageConfig, runs: list[RunManifest]
) -> Iterator[tuple[AbstractFileSystem, str, RunManifest]]:
    """Yield the runs that read pictures, each with the filesystem and the root of its output."""
    fs, root = connect(out, storage, anonymous=storage.anonymous)
    sources = {str(run.settings[MAPS_OF]) for run in runs if run.settings.get(MAPS_OF)}
    yield from ((fs, root, run) for run in runs if not run.settings.get(MAPS_OF))
    for source in sorted(sources):
        yield from _annotating_runs(source, storage, load_runs(*connect(source, storage, anonymous=storage.anonymous)))


def _insert(con: duckdb.DuckDBPyConnection, statement: str, part: pa.Table) -> None:
    con.register("part", part)
    con.execute(statement)
    con.unregister("part")
