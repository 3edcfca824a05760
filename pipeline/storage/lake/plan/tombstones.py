"""Hides the rows of images that the input no longer has, and shows them when the input has these images again.

A tombstone is a row of ``quarantine`` with the reason ``deleted``; its detail is the run whose rows it hides. It is
decided later than these rows, so the rule for current rows in ``query`` hides them in every SQL engine. A row with the
reason ``restored`` and the same detail makes the rows of that run count again. No committed file is changed.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipeline.storage.lake.commit import BATCH_ROWS
from pipeline.storage.lake.encoding import in_row_groups
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.query import committed_views, quote, quote_list, same_version
from pipeline.storage.lake.records import committed_files, load_runs
from pipeline.storage.lake.rows import plan_rows
from pipeline.storage.lake.run import OpenRun
from pipeline.storage.lake.whole_objects import read_whole, write_whole
from pipeline.storage.truth.class_join import append_rows
from schemas.columns import TIMESTAMP
from schemas.errors import StoreError
from schemas.reasons import Reason
from schemas.tables import TABLES

_IN_CONTAINER = r"(?i)\.(tar|parquet|pq)#"
"""Where the uri of an image in a container leaves the container's name."""


def images_in_scope(
    fs: AbstractFileSystem, root: str, model: str, input_url: str, scope: str | None, *, in_containers: bool
) -> Iterator[pa.RecordBatch]:
    """Yield the annotated images of ``model`` that a listing should have again, and all images that are hidden.

    The columns are image_id, uri, etag, size_bytes, modified_at (int64, microseconds), detail (the run that annotated
    the image) and hidden. An image should be listed again where its uri begins with ``scope`` and where it lies in a
    container or not, as ``in_containers`` says; without a scope, where a run with the same ``input_url`` annotated it.
    Memory stays bounded. Raises StoreError where the output can't be read.
    """
    runs = [run for run in load_runs(fs, root) if run.model == model]
    files = committed_files(runs)
    if not files:
        return
    if scope is None:
        same_input = [run.run_id for run in runs if run.config.get("input") == input_url]
        belongs = f"list_contains({quote_list(same_input)}::VARCHAR[], run_id)"
    else:
        contained = f"regexp_matches(uri, {quote(_IN_CONTAINER)})"
        belongs = f"starts_with(uri, {quote(scope)}) AND {'' if in_containers else 'NOT '}{contained}"
    version = "image_id, uri, etag, size_bytes, epoch_us(modified_at) AS modified_at"
    with committed_views(fs, root, files) as con:
        query = (
            f"SELECT {version}, run_id AS detail, false AS hidden FROM images WHERE {belongs} UNION ALL"
            f" SELECT {version}, detail, true AS hidden FROM quarantine WHERE reason_code = {quote(Reason.DELETED)}"
        )
        yield from con.sql(query).to_arrow_reader(BATCH_ROWS)


def compare_output(
    con: duckdb.DuckDBPyConnection, in_output: Iterable[pa.RecordBatch], *, listed_whole: bool
) -> tuple[int, int]:
    """Make the table ``tombstones`` of the images that the input lost or has again; return how many of each there are.

    ``con`` has the tables ``listed`` and ``considered`` of the planner; ``in_output`` is what ``images_in_scope``
    yields. Only where ``listed_whole`` is true, images can be lost. Members of a container that can't be read now are
    not lost.
    """
    con.execute(
        "CREATE TABLE in_output (image_id VARCHAR, uri VARCHAR, etag VARCHAR, size_bytes BIGINT, modified_at BIGINT,"
        " detail VARCHAR, hidden BOOLEAN)"
    )
    for batch in in_output:
        append_rows(con, "in_output", pa.table(batch))
    con.execute(
        f"CREATE TABLE tombstones AS SELECT in_output.*, {quote(Reason.RESTORED)} AS reason_code"
        f" FROM in_output JOIN considered USING (image_id) WHERE hidden AND {same_version('considered', 'in_output')}"
    )
    if listed_whole:
        con.execute(
            f"INSERT INTO tombstones SELECT *, {quote(Reason.DELETED)} FROM in_output ANTI JOIN listed USING (image_id)"
            " WHERE NOT hidden AND NOT EXISTS (FROM listed AS damaged"
            f" WHERE damaged.reason_code = {quote(Reason.UNREADABLE_CONTAINER)}"
            " AND starts_with(in_output.uri, damaged.uri || '#'))"
        )
    found = dict(con.execute("SELECT reason_code, count(*) FROM tombstones GROUP BY reason_code").fetchall())
    return found.get(Reason.DELETED, 0), found.get(Reason.RESTORED, 0)


def write_tombstones(
    con: duckdb.DuckDBPyConnection, fs: AbstractFileSystem, root: str, plan_dir: str, *, deleted: bool
) -> Iterator[str]:
    """Write the table ``tombstones`` to files of the plan, of the schema PLAN, and yield their relative paths.

    Deleted images are written where ``deleted`` is true, restored ones always.
    """
    wanted = "true" if deleted else f"reason_code = {quote(Reason.RESTORED)}"
    found = con.sql(f"SELECT * FROM tombstones WHERE {wanted} ORDER BY image_id").to_arrow_reader(BATCH_ROWS)
    for number, batch in enumerate(found):
        rows = pa.table(batch).append_column("path", batch["uri"])
        file = f"{plan_dir}/tombstones-{number:05d}.parquet"
        write_whole(fs, LakePaths(root).full(file), in_row_groups([plan_rows(rows)]))
        yield file


def commit_tombstones(run: OpenRun, files: Sequence[str]) -> None:
    """Commit what ``write_tombstones`` wrote as rows of ``quarantine``. ``run`` has begun; ``files`` are its paths.

    Raises what ``Committer.commit`` raises, and StoreError where a file can't be read.
    """
    schema = TABLES["quarantine"].schema()
    committer = run.committer({"quarantine": schema})
    for number, file in enumerate(files):
        data = read_whole(run.fs, LakePaths(run.root).full(file))
        if data is None:
            raise StoreError(f"can't read the plan {file}: not found")
        rows = pq.read_table(pa.BufferReader(data))
        columns = {name: rows[name] for name in rows.schema.names} | {
            "run_id": pa.repeat(run.manifest.run_id, len(rows)),
            "stage": pa.repeat(Reason.DELETED.stage.value, len(rows)),
            "permanent": pa.repeat(Reason.DELETED.permanent, len(rows)),
            "rejected_at": pa.repeat(pa.scalar(datetime.now(UTC), TIMESTAMP), len(rows)),
        }
        table = pa.table({name: columns[name] for name in schema.names}, schema=schema)
        committer.commit(f"tombstones-{number:05d}", {"quarantine": table})
