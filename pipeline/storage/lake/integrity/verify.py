"""Checks that an output is complete and whole: the work of ``camlake verify``.

The files are compared with the records of the runs, then the rows with the plans and with each other. DuckDB does this
over the Parquet files, so that memory stays bounded for any number of images.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import duckdb
import pyarrow as pa
from fsspec import AbstractFileSystem

from pipeline.storage.lake.integrity.documents import all_problems, read_compactions, read_documents
from pipeline.storage.lake.integrity.file_checks import (
    changed_empty_files,
    damaged_dropped,
    damaged_files,
    damaged_plans,
    misplaced_files,
)
from pipeline.storage.lake.integrity.row_checks import (
    DONE_AGAIN,
    MISSING,
    PLANNED_TWICE,
    add_dropped,
    add_runs_and_plans,
    faults_of,
    plan_files,
    problems_of,
    row_checks,
)
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.query import committed_views, file_urls, has_version, same_version
from pipeline.storage.lake.records import committed_files, load_runs, no_output, with_compactions
from pipeline.storage.lake.whole_objects import list_data_files
from schemas.runs import DataFile, RunManifest
from schemas.tables import PLAN, optional_tables

_COMPARISONS = {
    "are not in the output": "SELECT count(*), min(uri) FROM listed ANTI JOIN endings USING (image_id)",
    "changed since they were annotated": "SELECT count(*), min(listed.uri) FROM listed JOIN endings USING (image_id)"
    f" WHERE NOT deleted AND ({has_version('listed')} OR {has_version('endings')})"
    f" AND NOT {same_version('listed', 'endings')}",
    "are hidden in the output": "SELECT count(*), min(listed.uri) FROM listed JOIN endings USING (image_id)"
    " WHERE deleted",
}
"""Queries for the inputs in which a listing differs from the output.

An input of which neither knows a version, such as a manifest's row that can't be read, may be the same or another one.
"""

_UNKNOWN_VERSION = "inputs without a version, which each run annotates anew"
_CURRENT_SQL = """
SELECT count(*) FILTER (annotated), count(*) FILTER (NOT annotated AND NOT deleted), count(*) FILTER (deleted),
    (SELECT count(*) FROM all_endings WHERE NOT deleted AND rows_of = run_id)
FROM endings
"""

_COUNTED = {
    "planned": "SELECT run_id FROM plans",
    "annotated": "SELECT run_id FROM all_images UNION ALL SELECT run_id FROM dropped WHERE annotated",
    "rejected": "SELECT run_id FROM all_quarantine UNION ALL SELECT run_id FROM dropped WHERE NOT annotated",
    "boxes": "SELECT run_id FROM all_boxes UNION ALL SELECT run_id FROM dropped, range(boxes)",
}
"""Queries for a row for each thing that a run counted, also for those that a compaction dropped."""


@dataclass(frozen=True)
class VerifyReport:
    """The result of a check."""

    problems: tuple[str, ...]
    """The problems, one line each; empty for an output that is complete and whole."""
    facts: dict[str, int] = field(default_factory=dict)
    """The numbers of checked things, by name."""


def verify(fs: AbstractFileSystem, root: str) -> VerifyReport:
    """Check an output against everything that its runs recorded, and return what is wrong with it.

    Every planned input of every run ends in exactly one of images and quarantine; a later run may end the open inputs
    of a dead run. No version of an image is annotated twice. Every committed file exists with the recorded content, and
    there is no other file. Rows of the optional tables belong to annotated images and have possible values. The
    documents of the runs are unchanged, and all counts agree. Raises StoreError where there is no output and where the
    store fails.
    """
    documents = read_documents(fs, root)
    if not documents:
        raise no_output(fs.unstrip_protocol(root))
    compactions, unreadable = read_compactions(fs, root)
    runs = with_compactions([one.run for one in documents if one.run], compactions)
    lost = {one.run_id for one in documents if not one.run}
    files, listed = committed_files(runs), list_data_files(fs, root)
    damage = damaged_files(fs, LakePaths(root), files, listed)
    plans = plan_files(fs, root, runs)
    bad_plans, bad_dropped = damaged_plans(fs, root, plans), damaged_dropped(fs, root, compactions)
    plans = [file for file in plans if file.path not in bad_plans]
    sound = [file for file in files if file.path not in damage]
    with committed_views(fs, root, [*sound, *plans]) as con:
        add_runs_and_plans(con, runs, file_urls(fs, root, plans, "plan"))
        add_dropped(
            con, fs, root, [one for one in compactions if not one.dropped or one.dropped.path not in bad_dropped]
        )
        problems = [
            *all_problems(documents),
            *unreadable,
            *damage.values(),
            *bad_plans.values(),
            *bad_dropped.values(),
            *misplaced_files(runs, listed, lost, compactions),
            *changed_empty_files(fs, root),
            *_sums(runs),
            *_open_inputs(con, runs),
            *problems_of(con, [PLANNED_TWICE, DONE_AGAIN, *row_checks()]),
            *_counted(con, runs),
        ]
        facts = _facts(con, runs, files)
    return VerifyReport(tuple(problems), facts)


def _sums(runs: Sequence[RunManifest]) -> list[str]:
    """Return the contradictions between the counts of complete runs, one line each."""
    problems = []
    for run in runs:
        counts = run.counts
        ended, by_reason = counts.annotated + counts.rejected, sum(counts.rejected_by_reason.values())
        if run.status == "complete" and counts.planned != ended:
            problems.append(f"run {run.run_id}: {counts.planned} images planned, but {ended} annotated or rejected")
        inputs = counts.listed + counts.hidden
        if run.status == "complete" and inputs != counts.already_done + counts.planned + counts.left_out:
            problems.append(f"run {run.run_id}: already done, planned and left out don't add up to {inputs} listed")
        if run.status != "running" and by_reason != counts.rejected:
            problems.append(f"run {run.run_id}: {by_reason} rejections by reason, but {counts.rejected} rejected")
    return problems


def _open_inputs(con: duckdb.DuckDBPyConnection, runs: Sequence[RunManifest]) -> Iterator[str]:
    """Yield one line for each run with planned inputs that neither it nor a later run ended."""
    by_id = {run.run_id: run for run in runs}
    for run_id, count, example in faults_of(con, MISSING):
        run = by_id[run_id]
        if run.status == "complete":
            yield f"run {run_id}: {count} planned inputs are neither in images nor in quarantine, such as {example}"
        elif not _listed_since(run, runs):
            yield f"run {run_id} ({run.status}) left {count} inputs unfinished, such as {example}: annotate again"


def _listed_since(run: RunManifest, runs: Sequence[RunManifest]) -> bool:
    """Return whether a later complete run listed the same input in full; images still open are gone from the input.

    The later run must also have ended later: otherwise it counted commits that ``repair`` removed as done.
    """
    return any(
        later.run_id > run.run_id
        and later.status == "complete"
        and later.model == run.model
        and later.config.get("input") == run.config.get("input")
        and later.counts.left_out == 0
        and (later.ended_at or later.started_at) >= (run.ended_at or run.started_at)
        for later in runs
    )


def _counted(con: duckdb.DuckDBPyConnection, runs: Sequence[RunManifest]) -> Iterator[str]:
    """Yield a line for each run whose manifest has wrong numbers of rows; a dead run's plan may be incomplete."""
    for name, rows_counted in _COUNTED.items():
        found = dict(con.sql(f"SELECT run_id, count(*) FROM ({rows_counted}) GROUP BY run_id").fetchall())
        for run in runs:
            recorded, rows = getattr(run.counts, name), found.get(run.run_id, 0)
            if recorded != rows and (name != "planned" or run.status == "complete"):
                yield f"run {run.run_id}: {rows} rows {name}, but its manifest says {recorded}"
    query = (
        "SELECT run_id, reason_code, count(*) FROM (SELECT run_id, reason_code FROM all_quarantine UNION ALL"
        " SELECT run_id, reason_code FROM dropped WHERE NOT annotated) GROUP BY ALL"
    )
    reasons = {(run_id, code): rows for run_id, code, rows in con.sql(query).fetchall()}
    for run in runs:
        recorded_reasons = {(run.run_id, code): rows for code, rows in run.counts.rejected_by_reason.items()}
        own = {key: rows for key, rows in reasons.items() if key[0] == run.run_id}
        if run.status != "running" and own != recorded_reasons:
            yield f"run {run.run_id}: the reasons in quarantine are not those that its manifest counts"


def _facts(con: duckdb.DuckDBPyConnection, runs: Sequence[RunManifest], files: Sequence[DataFile]) -> dict[str, int]:
    """Return the numbers of checked things; images are counted once for each model, all rows of other tables count."""
    annotated, rejected, hidden, rows = con.sql(_CURRENT_SQL).fetchall()[0]
    facts = {
        "runs": len(runs),
        "runs interrupted": sum(run.status == "interrupted" for run in runs),
        "inputs planned": int(con.sql("SELECT count(*) FROM plans").fetchall()[0][0]),
        "images annotated": annotated,
        "images rejected": rejected,
        "images superseded": rows - annotated - rejected - hidden,
    }
    facts |= {"images hidden": hidden} if hidden else {}
    ((dropped,),) = con.sql("SELECT count(*) FROM dropped").fetchall()
    facts |= {"endings dropped by compact": dropped} if dropped else {}
    facts |= {table: sum(file.rows for file in files if file.table == table) for table in optional_tables()}
    return facts | {"files": len(files), "bytes": sum(file.size_bytes for file in files)}


def compare_input(fs: AbstractFileSystem, root: str, batches: Iterable[pa.RecordBatch]) -> VerifyReport:
    """Compare an output with a listing of its input (PLAN), and return the new, changed and missing inputs.

    New and changed inputs are problems: the next run annotates them. Missing inputs are only counted. The
    model is that of the newest run. Raises StoreError where there is no output.
    """
    runs = load_runs(fs, root)
    if not runs:
        raise no_output(fs.unstrip_protocol(root))
    files = committed_files([run for run in runs if run.model == runs[-1].model])
    with committed_views(fs, root, files) as con:
        con.register("batches", pa.RecordBatchReader.from_batches(PLAN, batches))
        con.execute("CREATE TABLE listed AS SELECT DISTINCT ON (image_id) * FROM batches")
        found = {name: con.sql(query).fetchall()[0] for name, query in _COMPARISONS.items()}
        counting = f"SELECT count(*), count(*) FILTER (NOT {has_version('listed')}) FROM listed"
        listed, without_version = con.sql(counting).fetchall()[0]
        gone = int(
            con.sql("SELECT count(*) FROM endings ANTI JOIN listed USING (image_id) WHERE NOT deleted").fetchall()[0][0]
        )
    problems = [
        f"{count} inputs {what}, such as {example!r}: annotate again"
        for what, (count, example) in found.items()
        if count
    ]
    facts = {"inputs listed now": listed, _UNKNOWN_VERSION: without_version, "inputs gone since": gone}
    return VerifyReport(tuple(problems), facts)
