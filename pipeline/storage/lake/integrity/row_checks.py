"""The rules for the rows of an output, as SQL over its views and over the tables ``runs`` and ``plans``.

``runs`` has run_id, model, status and outputs; ``plans`` has run_id, image_id and uri of every planned input.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.query import quote_list
from pipeline.storage.lake.whole_objects import list_dir, read_whole
from schemas.runs import Compaction, DataFile, RunManifest
from schemas.tables import DROPPED, TABLES, TableSpec, optional_tables


class RowCheck(NamedTuple):
    """A rule that rows may break."""

    faults: str
    """Query for the rows that break the rule: run_id, image_id and an example to show."""
    said: str
    """The problem in words; the number of such rows stands before it."""


class Fault(NamedTuple):
    """The rows of one run that break a rule."""

    run_id: str
    rows: int
    example: str


MISSING = """
WITH open AS (
    SELECT model, run_id, image_id, plans.uri, status
    FROM plans JOIN runs USING (run_id) ANTI JOIN all_endings USING (model, run_id, image_id)
    ANTI JOIN dropped USING (run_id, image_id)
)
SELECT run_id, image_id, uri AS example FROM open
WHERE status = 'complete' OR NOT EXISTS (
    FROM all_endings AS later
    WHERE later.image_id = open.image_id AND later.model = open.model AND later.run_id > open.run_id)
"""
"""Planned inputs without an ending, also among those that a compaction dropped.

A complete run must end all its inputs; a later run may end those of a dead run.
"""

PLANNED_TWICE = RowCheck(
    "SELECT run_id, image_id, min(uri) AS example FROM plans GROUP BY run_id, image_id HAVING count(*) > 1",
    "inputs are planned more than once",
)

DONE_AGAIN = RowCheck(
    """
WITH repeated AS (
    SELECT DISTINCT model, image_id
    FROM (SELECT model, image_id FROM all_endings GROUP BY model, image_id, etag, size_bytes, modified_at
          HAVING count(*) > 1)
), sequence AS (
    SELECT run_id, image_id, uri, deleted, (etag, size_bytes, modified_at) AS version,
        lag((etag, size_bytes, modified_at)) OVER one_image AS version_before,
        lag(annotated) OVER one_image AS annotated_before,
        lag(run_id) OVER one_image AS run_before
    FROM all_endings SEMI JOIN repeated USING (model, image_id)
    WINDOW one_image AS (PARTITION BY model, image_id ORDER BY decided_at, run_id)
)
SELECT run_id, image_id, uri AS example FROM sequence
WHERE annotated_before AND NOT deleted AND run_before <> run_id AND version IS NOT DISTINCT FROM version_before
""",
    "images that were annotated before were worked on again",
)
"""Images that were annotated and then processed again. This is allowed only if another version came in between."""

UNPLANNED = RowCheck(
    "SELECT run_id, image_id, uri AS example FROM all_endings ANTI JOIN plans USING (run_id, image_id)",
    "rows of images and quarantine are of no planned input",
)

_OTHER_URI = RowCheck(
    """SELECT run_id, image_id, all_endings.uri AS example FROM all_endings JOIN plans USING (run_id, image_id)
    GROUP BY run_id, image_id, all_endings.uri HAVING NOT bool_or(all_endings.uri = plans.uri)""",
    "rows of images and quarantine have another uri than the planned input",
)

_ENDED_TWICE = RowCheck(
    """SELECT run_id, image_id, min(uri) AS example FROM all_endings
    GROUP BY model, run_id, image_id HAVING count(*) > 1""",
    "images stand more than once in images and quarantine",
)


def plan_files(fs: AbstractFileSystem, root: str, runs: Sequence[RunManifest]) -> list[DataFile]:
    """Return the files of the plans of ``runs``."""
    paths, found = LakePaths(root), []
    for run in runs:
        for path in list_dir(fs, paths.full(paths.plan_dir(run.run_id))):
            if path.endswith(".parquet"):
                size = int(fs.size(path))
                found.append(DataFile(table="plan", path=paths.relative(path), rows=0, size_bytes=size))
    return found


def add_dropped(
    con: duckdb.DuckDBPyConnection, fs: AbstractFileSystem, root: str, compactions: Sequence[Compaction]
) -> None:
    """Add the table ``dropped``, of the schema DROPPED, with the endings that the compactions dropped."""
    con.register("none_dropped", DROPPED.empty_table())
    con.execute("CREATE TABLE dropped AS SELECT * FROM none_dropped")
    for one in compactions:
        data = read_whole(fs, LakePaths(root).full(one.dropped.path)) if one.dropped else None
        if data is not None:
            con.register("more_dropped", pq.read_table(pa.BufferReader(data)))
            con.execute("INSERT INTO dropped SELECT * FROM more_dropped")


def add_runs_and_plans(con: duckdb.DuckDBPyConnection, runs: Sequence[RunManifest], plan_urls: Sequence[str]) -> None:
    """Add the table ``runs`` and the view ``plans`` to the views of an output."""
    con.execute("CREATE TABLE runs (run_id VARCHAR, model VARCHAR, status VARCHAR, outputs VARCHAR[])")
    rows = [[run.run_id, run.model, run.status, list(run.settings.get("outputs", ()))] for run in runs]
    if rows:
        con.executemany("INSERT INTO runs VALUES (?, ?, ?, ?)", rows)
    source = "(SELECT NULL::VARCHAR AS image_id, NULL::VARCHAR AS uri, '' AS filename WHERE false)"
    if plan_urls:
        source = f"read_parquet({quote_list(plan_urls)}, filename = true, hive_partitioning = false)"
    run_id = "regexp_extract(filename, '.*_runs/([^/]+)/plan/', 1)"
    con.execute(f"CREATE VIEW plans AS SELECT {run_id} AS run_id, image_id, uri FROM {source}")


def row_checks() -> list[RowCheck]:
    """Return the rules that concern only rows of one image, so that a commit with wrong rows can be removed."""
    checks = [UNPLANNED, _OTHER_URI, _ENDED_TWICE]
    for spec in optional_tables().values():
        checks += [_orphans(spec), _incomplete(spec)]
    return checks + [_unsound(spec) for spec in TABLES.values() if spec.sound]


def _orphans(spec: TableSpec) -> RowCheck:
    return RowCheck(
        f"SELECT run_id, image_id, image_id AS example FROM all_{spec.name}"
        " ANTI JOIN all_images USING (model, run_id, image_id)",
        f"rows of {spec.name} are of no annotated image",
    )


def _incomplete(spec: TableSpec) -> RowCheck:
    return RowCheck(
        f"""SELECT run_id, image_id, uri AS example FROM (
            SELECT all_images.*, coalesce(found, 0) AS n
            FROM all_images SEMI JOIN (FROM runs WHERE list_contains(outputs, '{spec.name}')) USING (run_id)
            LEFT JOIN (SELECT model, run_id, image_id, count(*) AS found FROM all_{spec.name} GROUP BY ALL)
            USING (model, run_id, image_id))
        WHERE NOT ({spec.complete})""",
        f"images don't have {spec.complete_as}",
    )


def _unsound(spec: TableSpec) -> RowCheck:
    rule, source = spec.sound, f"all_{spec.name}"
    if spec.optional:
        image = "(SELECT model, run_id, image_id, uri AS image_uri, width_px, height_px FROM all_images)"
        source += f" JOIN {image} USING (model, run_id, image_id)"
        rule += " AND uri = image_uri" if "uri" in spec.columns.names else ""
    return RowCheck(
        f"SELECT run_id, image_id, image_id AS example FROM {source} WHERE NOT coalesce({rule}, false)",
        f"rows of {spec.name} hold what can't be",
    )


def faults_of(con: duckdb.DuckDBPyConnection, faults: str) -> Iterator[Fault]:
    """Yield the number of rows that a query for faults finds in each run, with one example."""
    query = f"SELECT run_id, count(*), min(example) FROM ({faults}) GROUP BY run_id ORDER BY run_id"
    for run_id, rows, example in con.sql(query).fetchall():
        yield Fault(run_id, rows, repr(example))


def problems_of(con: duckdb.DuckDBPyConnection, checks: list[RowCheck]) -> Iterator[str]:
    """Yield one line for each check and each run with rows that break it."""
    for check in checks:
        for run_id, rows, example in faults_of(con, check.faults):
            yield f"run {run_id}: {rows} {check.said}, such as {example}"
