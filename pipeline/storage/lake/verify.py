"""Proves that an output is complete and whole: what ``camlake verify`` does.

Listings and footers are compared with what the runs recorded, then the rows with the plans, in DuckDB over Parquet, so
that memory stays bounded whatever the number of images.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import duckdb
from fsspec import AbstractFileSystem

from pipeline.storage.lake.filecheck import damaged_files, misplaced_files
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.query import committed_views, file_urls, quote_list
from pipeline.storage.lake.records import committed_files, load_runs
from pipeline.storage.lake.whole_objects import list_data_files, list_dir
from schemas.errors import StoreError
from schemas.runs import DataFile, RunManifest
from schemas.tables import optional_tables

_MISSING_SQL = """
WITH open AS (
    SELECT model, run_id, image_id, plans.uri, status
    FROM plans JOIN runs USING (run_id) ANTI JOIN all_endings USING (model, run_id, image_id)
)
SELECT run_id, count(*), min(uri) FROM open
WHERE status = 'complete' OR NOT EXISTS (
    FROM all_endings AS later
    WHERE later.image_id = open.image_id AND later.model = open.model AND later.run_id > open.run_id)
GROUP BY run_id ORDER BY run_id
"""
"""A complete run ends all of its inputs itself; what another run left open, a later one may end."""

_UNPLANNED_SQL = """
SELECT run_id, count(*), min(uri) FROM all_endings ANTI JOIN plans USING (run_id, image_id)
GROUP BY run_id ORDER BY run_id
"""

_PLANNED_TWICE_SQL = """
SELECT run_id, count(*), min(uri)
FROM (SELECT run_id, image_id, min(uri) AS uri FROM plans GROUP BY run_id, image_id HAVING count(*) > 1)
GROUP BY run_id ORDER BY run_id
"""

_ENDED_TWICE_SQL = """
SELECT run_id, count(*), min(uri)
FROM (SELECT run_id, min(uri) AS uri FROM all_endings GROUP BY model, run_id, image_id HAVING count(*) > 1)
GROUP BY run_id ORDER BY run_id
"""

_DONE_AGAIN_SQL = """
WITH repeated AS (
    SELECT DISTINCT model, image_id
    FROM (SELECT model, image_id FROM all_endings GROUP BY model, image_id, etag, size_bytes, modified_at
          HAVING count(*) > 1)
), sequence AS (
    SELECT run_id, uri, (etag, size_bytes, modified_at) AS version,
        lag((etag, size_bytes, modified_at)) OVER one_image AS version_before,
        lag(annotated) OVER one_image AS annotated_before,
        lag(run_id) OVER one_image AS run_before
    FROM all_endings SEMI JOIN repeated USING (model, image_id)
    WINDOW one_image AS (PARTITION BY model, image_id ORDER BY decided_at, run_id)
)
SELECT run_id, count(*), min(uri) FROM sequence
WHERE annotated_before AND run_before <> run_id AND version IS NOT DISTINCT FROM version_before
GROUP BY run_id ORDER BY run_id
"""
"""A version that was annotated is done; only another version in between makes it work again."""

_CURRENT_SQL = """
SELECT count(*) FILTER (annotated), count(*) FILTER (NOT annotated), (SELECT count(*) FROM all_endings) FROM endings
"""

_ORPHANS_SQL = """
SELECT run_id, count(*), min(image_id) FROM all_{table} ANTI JOIN all_images USING (model, run_id, image_id)
GROUP BY run_id ORDER BY run_id
"""

_INCOMPLETE_SQL = """
SELECT run_id, count(*), min(uri)
FROM (
    SELECT all_images.*, coalesce(found, 0) AS n FROM all_images
    LEFT JOIN (SELECT model, run_id, image_id, count(*) AS found FROM all_{table} GROUP BY ALL)
    USING (model, run_id, image_id) WHERE list_contains($runs, run_id))
WHERE NOT ({complete}) GROUP BY run_id ORDER BY run_id
"""

_COUNTED = {"planned": "plans", "annotated": "all_images", "rejected": "all_quarantine", "boxes": "all_boxes"}


class _Finding(NamedTuple):
    run_id: str
    rows: int
    example: str


@dataclass(frozen=True)
class VerifyReport:
    """What was checked and what is wrong."""

    problems: tuple[str, ...]
    """One line each; empty for an output that is complete and whole."""
    facts: dict[str, int] = field(default_factory=dict)
    """How much was checked, by name."""


def verify(fs: AbstractFileSystem, root: str) -> VerifyReport:
    """Check an output against everything its runs recorded, and return what is wrong with it.

    Every planned input of every run ends in exactly one of images and quarantine (what a dead run left open must be
    covered by a later one); no version of an image is annotated twice; every committed file is there with the recorded
    rows, bytes and schema, and no other; boxes, heatmaps and features belong to annotated images; all counts agree.
    Raises StoreError where there is no output, where a run's document can't be read, or where the store fails.
    """
    runs = load_runs(fs, root)
    if not runs:
        raise StoreError(f"{root}: no camlake output here (no _runs/<run_id>/manifest.json)")
    files, listed = committed_files(runs), list_data_files(fs, root)
    damage = damaged_files(fs, LakePaths(root), files, listed)
    plans = _plan_files(fs, root, runs)
    sound = [file for file in files if file.path not in damage]
    with committed_views(fs, root, [*sound, *plans]) as con:
        _add_runs_and_plans(con, runs, file_urls(fs, root, plans, "plan"))
        problems = [
            *damage.values(),
            *misplaced_files(runs, listed),
            *_sums(runs),
            *_open_inputs(con, runs),
            *_repetitions(con),
            *_owners(con, runs),
            *_counted(con, runs),
        ]
        facts = _facts(con, runs, files)
    return VerifyReport(tuple(problems), facts)


def _sums(runs: Sequence[RunManifest]) -> list[str]:
    """Return where the counts of a complete run contradict each other."""
    problems = []
    for run in runs:
        counts = run.counts
        ended, by_reason = counts.annotated + counts.rejected, sum(counts.rejected_by_reason.values())
        if run.status == "complete" and counts.planned != ended:
            problems.append(f"run {run.run_id}: {counts.planned} images planned, but {ended} annotated or rejected")
        if run.status == "complete" and counts.listed != counts.already_done + counts.planned + counts.left_out:
            problems.append(
                f"run {run.run_id}: already done, planned and left out don't add up to {counts.listed} listed"
            )
        if run.status != "running" and by_reason != counts.rejected:
            problems.append(f"run {run.run_id}: {by_reason} rejections by reason, but {counts.rejected} rejected")
    return problems


def _plan_files(fs: AbstractFileSystem, root: str, runs: Sequence[RunManifest]) -> list[DataFile]:
    layout, found = LakePaths(root), []
    for run in runs:
        for path in list_dir(fs, layout.full(layout.plan_dir(run.run_id))):
            if path.endswith(".parquet"):
                size = int(fs.size(path))
                found.append(DataFile(table="plan", path=layout.relative(path), rows=0, size_bytes=size))
    return found


def _add_runs_and_plans(con: duckdb.DuckDBPyConnection, runs: Sequence[RunManifest], plan_urls: Sequence[str]) -> None:
    """Add the table ``runs`` (run_id, model, status) and the view ``plans`` (run_id, image_id, uri)."""
    con.execute("CREATE TABLE runs (run_id VARCHAR, model VARCHAR, status VARCHAR)")
    con.executemany("INSERT INTO runs VALUES (?, ?, ?)", [[run.run_id, run.model, run.status] for run in runs])
    source = "(SELECT NULL::VARCHAR AS image_id, NULL::VARCHAR AS uri, '' AS filename WHERE false)"
    if plan_urls:
        source = f"read_parquet({quote_list(plan_urls)}, filename = true, hive_partitioning = false)"
    run_id = "regexp_extract(filename, '.*_runs/([^/]+)/plan/', 1)"
    con.execute(f"CREATE VIEW plans AS SELECT {run_id} AS run_id, image_id, uri FROM {source}")


def _found(con: duckdb.DuckDBPyConnection, query: str, parameters: dict[str, Any] | None = None) -> Iterator[_Finding]:
    """Yield (run_id, count, example) of a query that gives these."""
    for run_id, count, example in con.sql(query, params=parameters).fetchall():
        yield _Finding(run_id, count, repr(example))


def _open_inputs(con: duckdb.DuckDBPyConnection, runs: Sequence[RunManifest]) -> Iterator[str]:
    """Yield where plans and endings don't match, one line a run."""
    by_id = {run.run_id: run for run in runs}
    for run_id, count, example in _found(con, _MISSING_SQL):
        run = by_id[run_id]
        if run.status == "complete":
            yield f"run {run_id}: {count} planned inputs are neither in images nor in quarantine, such as {example}"
        elif not _listed_since(run, runs):
            yield f"run {run_id} ({run.status}) left {count} inputs unfinished, such as {example}: annotate again"
    for run_id, count, example in _found(con, _UNPLANNED_SQL):
        yield f"run {run_id}: {count} rows of images and quarantine are of no planned input, such as {example}"
    for run_id, count, example in _found(con, _PLANNED_TWICE_SQL):
        yield f"run {run_id}: {count} inputs are planned more than once, such as {example}"


def _listed_since(run: RunManifest, runs: Sequence[RunManifest]) -> bool:
    """Tell whether a later complete run listed the same input in full: what is open after it is gone from the input."""
    return any(
        later.run_id > run.run_id
        and later.status == "complete"
        and later.model == run.model
        and later.config.get("input") == run.config.get("input")
        and later.counts.left_out == 0
        for later in runs
    )


def _repetitions(con: duckdb.DuckDBPyConnection) -> Iterator[str]:
    for run_id, count, example in _found(con, _ENDED_TWICE_SQL):
        yield f"run {run_id}: {count} images stand more than once in images and quarantine, such as {example}"
    for run_id, count, example in _found(con, _DONE_AGAIN_SQL):
        yield f"run {run_id}: {count} images that were annotated before were worked on again, such as {example}"


def _owners(con: duckdb.DuckDBPyConnection, runs: Sequence[RunManifest]) -> Iterator[str]:
    """Yield where boxes, heatmaps and features don't belong to the annotated images that they should belong to."""
    for table, spec in optional_tables().items():
        for run_id, count, example in _found(con, _ORPHANS_SQL.format(table=table)):
            yield f"run {run_id}: {count} rows of {table} are of no annotated image, such as image_id {example}"
        writing = [run.run_id for run in runs if table in run.settings.get("outputs", ())]
        query = _INCOMPLETE_SQL.format(table=table, complete=spec.complete)
        for run_id, count, example in _found(con, query, {"runs": writing}):
            yield f"run {run_id}: {count} images don't have {spec.complete_as}, such as {example}"


def _counted(con: duckdb.DuckDBPyConnection, runs: Sequence[RunManifest]) -> Iterator[str]:
    """Yield where a run's rows are not as many as its manifest says; the plan of a run that died may be incomplete."""
    for name, view in _COUNTED.items():
        found = dict(con.sql(f"SELECT run_id, count(*) FROM {view} GROUP BY run_id").fetchall())
        for run in runs:
            recorded, rows = getattr(run.counts, name), found.get(run.run_id, 0)
            if recorded != rows and (name != "planned" or run.status == "complete"):
                yield f"run {run.run_id}: {rows} rows {name}, but its manifest says {recorded}"


def _facts(con: duckdb.DuckDBPyConnection, runs: Sequence[RunManifest], files: Sequence[DataFile]) -> dict[str, int]:
    """Return how much was checked; images are counted once for each model, rows of other tables as they stand."""
    annotated, rejected, rows = con.sql(_CURRENT_SQL).fetchall()[0]
    facts = {
        "runs": len(runs),
        "runs interrupted": sum(run.status == "interrupted" for run in runs),
        "inputs planned": int(con.sql("SELECT count(*) FROM plans").fetchall()[0][0]),
        "images annotated": annotated,
        "images rejected": rejected,
        "images superseded": rows - annotated - rejected,
    }
    facts |= {table: sum(file.rows for file in files if file.table == table) for table in optional_tables()}
    return facts | {"files": len(files), "bytes": sum(file.size_bytes for file in files)}
