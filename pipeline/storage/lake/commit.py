"""Commits rows, starts and finishes runs, clears up after dead runs, and lists the images that are done.

Rows become part of the dataset in three steps: first the data files are staged, where no reader sees them, each under a
name made of the run, the task and its content; then, while the lease is held, they are shown; then the commit record
that names them is written. A file that no record names does not count; it is removed, staged or shown, when the run
ends or when the next one starts. Two attempts at one task, of which one seemed dead, never overwrite each other's
files.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fsspec import AbstractFileSystem

from pipeline.storage.filesystems import connect, is_local
from pipeline.storage.lake.empty_tables import write_empty_quarantine
from pipeline.storage.lake.encoding import to_parquet
from pipeline.storage.lake.layout import DATA_NAME, HIDDEN_NAME, LakePaths
from pipeline.storage.lake.lease import assert_generation_held
from pipeline.storage.lake.query import committed_views
from pipeline.storage.lake.records import (
    committed_files,
    digest_of,
    load_commits,
    load_compactions,
    load_runs,
    manifest_path,
    read_record,
    settle_compactions,
    with_commits,
    write_record,
)
from pipeline.storage.lake.staged import TEMP_SUFFIX, Staged, remove_staged, stage
from pipeline.storage.lake.whole_objects import list_data_files, remove_many, remove_secrets
from pipeline.storage.patience import PATIENCE
from schemas.errors import LeaseError, StoreError
from schemas.options.config import StorageConfig
from schemas.runs import CommitRecord, Counts, DataFile, RunManifest
from schemas.tables import TABLES, Table, optional_tables

BATCH_ROWS = 65_536
_NAMES = re.compile(f"{DATA_NAME.pattern}|{HIDDEN_NAME.pattern}")
"""The names that camlake gives to data files."""


@dataclass(frozen=True)
class Committer:
    """Commits the rows of write tasks. It holds plain values only, so that a copy can go to every worker."""

    out: str
    storage: StorageConfig
    run_id: str
    model: str
    """Value of the ``model`` partition."""
    date: str
    """Value of the ``date`` partition, YYYY-MM-DD."""
    generation: int
    """The generation of the run's lease: rows are committed only while the run holds it."""
    schemas: Mapping[Table, pa.Schema]
    """The schema of each table that this run writes."""

    def commit(self, task: str, tables: Mapping[Table, pa.Table], maps_without_box: int = 0) -> CommitRecord:
        """Write the rows of one task, make them part of the dataset, and return the commit record.

        A task that is committed already keeps its first record and its files. Raises StoreError for rows that do not
        fit their schema or each other and where the store refuses, LeaseError where another run took the output over;
        then no row of the task counts.
        """
        fs, root = connect(self.out, self.storage)
        paths = LakePaths(root)
        record_path = paths.full(paths.commit_path(self.run_id, task))
        if committed := read_record(fs, record_path, CommitRecord):
            return committed
        assert_generation_held(fs, root, self.generation)
        checked = {table: self._checked(table, rows) for table, rows in tables.items()}
        _check_images(checked)
        files: list[DataFile] = []
        with ExitStack() as to_discard:
            staged = []
            for table in TABLES:
                if (rows := checked.pop(table, None)) is not None and len(rows):
                    file, data = self._encoded(paths, table, rows, task)
                    files.append(file)
                    staged.append(stage(fs, paths.full(file.path), data))
                    to_discard.callback(staged[-1].discard)
            assert_generation_held(fs, root, self.generation)
            if committed := read_record(fs, record_path, CommitRecord):
                return committed
            self._show(fs, root, staged)
        rows_of = {file.table: file.rows for file in files}
        record = CommitRecord(
            run_id=self.run_id,
            task=task,
            images=rows_of.get("images", 0),
            rejected=rows_of.get("quarantine", 0),
            maps_without_box=maps_without_box,
            retries=PATIENCE.take_retries(),
            files=tuple(files),
        )
        assert_generation_held(fs, root, self.generation)
        # Another attempt at this task, on a node that seemed dead, may have committed it meanwhile.
        if committed := read_record(fs, record_path, CommitRecord):
            remove_many(fs, [paths.full(file.path) for file in files if file not in committed.files])
            return committed
        write_record(fs, record_path, record)
        return record

    def _checked(self, table: Table, rows: pa.Table) -> pa.Table:
        """Return the rows sorted and with the types of the schema; raises StoreError for rows that do not fit it."""
        schema = self.schemas.get(table)
        if schema is None:
            raise StoreError(f"table {table}: this run declared no such table")
        if set(rows.schema.names) != set(schema.names):
            odd = sorted(set(rows.schema.names) ^ set(schema.names))
            raise StoreError(f"table {table}: columns {odd} are missing or not declared")
        try:
            rows = rows.select(schema.names).cast(schema)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
            raise StoreError(f"table {table}: {str(error).splitlines()[0]}") from error
        if len(rows) and pc.unique(rows["run_id"]).to_pylist() != [self.run_id]:
            raise StoreError(f"table {table}: rows of another run than {self.run_id}")
        order = pc.sort_indices(rows, [(name, "ascending") for name in TABLES[table].order])
        in_order = pc.all(pc.equal(order, pa.array(np.arange(len(rows), dtype=np.uint64))), min_count=0).as_py()
        return rows if in_order else rows.take(order)

    def _show(self, fs: AbstractFileSystem, root: str, staged: Sequence[Staged]) -> None:
        """Show the staged files; raises LeaseError where they are gone because another run took the output over.

        Those of ``images`` come last: whoever reads by glob sees an image when all of its rows are there.
        """
        try:
            for one in reversed(staged):
                one.show()
        except StoreError:
            assert_generation_held(fs, root, self.generation)
            raise

    def _encoded(self, paths: LakePaths, table: Table, rows: pa.Table, task: str) -> tuple[DataFile, bytes]:
        data = to_parquet(rows)
        digest = digest_of(data)
        path = paths.data_path(table, self.model, self.date, self.run_id, f"{task}-{digest[:8]}")
        return DataFile(table=table, path=path, rows=len(rows), size_bytes=len(data), digest=digest), data


def _check_images(tables: Mapping[Table, pa.Table]) -> None:
    """Raise StoreError unless each image has one ending, and all rows of optional tables belong to annotated images."""
    empty = pa.array([], pa.string())
    annotated = tables["images"]["image_id"].combine_chunks() if "images" in tables else empty
    rejected = tables["quarantine"]["image_id"].combine_chunks() if "quarantine" in tables else empty
    endings = pa.concat_arrays([annotated, rejected])
    if len(pc.unique(endings)) != len(endings):
        raise StoreError("an image ends more than once in images and quarantine of the same task")
    for table in tables.keys() & optional_tables().keys():
        if not pc.all(pc.is_in(tables[table]["image_id"], value_set=annotated), min_count=0).as_py():
            raise StoreError(f"table {table}: rows of images that this task did not annotate")


def start_run(fs: AbstractFileSystem, root: str, manifest: RunManifest) -> None:
    """Write the lineage and the manifest of a run that begins; ``manifest`` has the status ``running``.

    The manifest is written twice. ``repair`` needs the copy that stays as it is. An output without a file of
    quarantine gets one without rows.
    """
    paths = LakePaths(root)
    write_record(fs, paths.full(paths.lineage_path(manifest.run_id)), manifest.lineage)
    write_record(fs, paths.full(paths.began_path(manifest.run_id)), manifest)
    write_record(fs, paths.full(paths.manifest_path(manifest.run_id)), manifest)
    write_empty_quarantine(fs, root, manifest.model, manifest.date)


def finish_run(fs: AbstractFileSystem, root: str, manifest: RunManifest, generation: int) -> RunManifest:
    """Write the final manifest of a complete run and return it: ``manifest`` with the files of its commit records.

    ``manifest`` has the counts that only the run knows, such as listed and planned; those of the rows are taken from
    the commit records. A second call changes only ``ended_at``. Raises StoreError where annotated and rejected do not
    add up to planned; then the run stays unfinished. Raises LeaseError where another run took the output over.
    """
    commits = load_commits(fs, root, manifest.run_id)
    run = with_reasons(fs, root, with_commits(manifest, commits))
    counts = run.counts
    if counts.planned != counts.annotated + counts.rejected:
        raise StoreError(
            f"{root}: run {run.run_id} planned {counts.planned} images, but {counts.annotated} are annotated and "
            f"{counts.rejected} rejected; run again to annotate what is missing"
        )
    assert_generation_held(fs, root, generation)
    summary = run.summary and run.summary.with_commits(commits, PATIENCE.take_retries())
    run = run.model_copy(update={"status": "complete", "ended_at": datetime.now(UTC), "summary": summary})
    write_record(fs, manifest_path(root, run), run)
    with suppress(LeaseError):  # The run is complete; a new holder of the lease clears up.
        remove_strays(fs, root, load_runs(fs, root), generation)
    return run


def interrupt_run(fs: AbstractFileSystem, root: str, run_id: str, generation: int) -> None:
    """Mark a run that ends with an error as interrupted; it keeps the files that its commit records name.

    Does nothing where the run has not begun or has finished. Raises LeaseError where another run took the output over.
    """
    path = LakePaths(root).full(LakePaths(root).manifest_path(run_id))
    run = read_record(fs, path, RunManifest)
    if run and run.status == "running":
        assert_generation_held(fs, root, generation)
        run = with_reasons(fs, root, with_commits(run, load_commits(fs, root, run_id)))
        write_record(fs, path, run.model_copy(update={"status": "interrupted", "ended_at": datetime.now(UTC)}))


def remove_leftovers(fs: AbstractFileSystem, root: str, generation: int | None = None) -> tuple[list[str], list[str]]:
    """Clear up after dead runs; return the data files that were removed (relative) and the ids of the dead runs.

    Only the holder of the lease may call this, before its own run starts: any other run that is ``running`` is dead.
    Its manifest becomes ``interrupted`` and keeps the files that its commit records name. Data files that no manifest
    and no commit record names are removed, and so are half-written local files and the secrets of plans. Files with
    names that camlake does not give are left alone.

    The commit records are read once. A record that a late worker of a dead run writes after that does not count.
    Raises LeaseError where the lease of the given ``generation`` was taken over meanwhile.
    """
    settle_compactions(fs, root)
    runs = load_runs(fs, root)
    dead = [run for run in runs if run.status == "running"]
    for run in dead:
        ended = with_reasons(fs, root, run).model_copy(update={"status": "interrupted", "ended_at": datetime.now(UTC)})
        write_record(fs, manifest_path(root, run), ended)
    if generation is not None:
        assert_generation_held(fs, root, generation)
    remove_secrets(fs, root)
    strays = remove_strays(fs, root, runs, generation)
    if is_local(fs):
        remove_many(fs, [path for path in fs.find(root) if path.endswith(TEMP_SUFFIX)])
    return strays, [run.run_id for run in dead]


def remove_strays(
    fs: AbstractFileSystem, root: str, runs: Sequence[RunManifest], generation: int | None = None
) -> list[str]:
    """Remove and return the data files with camlake's names that no run names, such as those of a late worker.

    Files that a compaction replaced stay until its grace period is over. Staged files are removed first, so that no
    worker of a dead run can show one after the shown files are listed; then those of ``images``, so that whoever reads
    by glob sees no image without its other rows. Raises LeaseError where the lease of the given
    ``generation`` was taken over: the requests of this function may have lasted longer than the lease.
    """

    def assert_held() -> None:
        if generation is not None:
            assert_generation_held(fs, root, generation)

    assert_held()
    remove_staged(fs, root)
    now = datetime.now(UTC)
    named = {file.path for file in committed_files(runs)}
    # Until a compaction is settled, its new files are hidden from whoever reads by glob.
    waiting = [one for one in load_compactions(fs, root) if not (one.shown and one.is_over(now))]
    named |= {path for one in waiting for path in one.replaced_files}
    written = [path for path in list_data_files(fs, root) if _NAMES.fullmatch(path.rpartition("/")[2])]
    strays = sorted(path for path in written if path not in named)
    paths = LakePaths(root)
    assert_held()
    for of_images in (True, False):
        remove_many(fs, [paths.full(path) for path in strays if path.startswith("images/") is of_images])
    return strays


def done_images(
    fs: AbstractFileSystem, root: str, model: str, retry_rejected: bool = False
) -> Iterator[pa.RecordBatch]:
    """Yield image_id, etag, size_bytes and modified_at of all images that are done for ``model``, each image once.

    An image is done where its latest committed row stands in ``images``, or in ``quarantine`` with a permanent reason;
    with ``retry_rejected`` a rejected image is never done. Memory stays bounded: DuckDB spills to disk.
    """
    files = committed_files([run for run in load_runs(fs, root) if run.model == model])
    if not files:
        return
    done = "annotated" if retry_rejected else "permanent"
    with committed_views(fs, root, files) as con:
        query = f"SELECT image_id, etag, size_bytes, modified_at FROM endings WHERE {done}"
        yield from con.sql(query).to_arrow_reader(BATCH_ROWS)


def with_reasons(fs: AbstractFileSystem, root: str, run: RunManifest) -> RunManifest:
    """Return the manifest, which has its committed files, with its rejections counted by reason."""
    with committed_views(fs, root, committed_files([run], "quarantine")) as con:
        reasons = con.sql("SELECT reason_code, count(*) FROM all_quarantine GROUP BY ALL ORDER BY ALL").fetchall()
    counts = Counts(**{**run.counts.model_dump(), "rejected_by_reason": dict(reasons)})
    return run.model_copy(update={"counts": counts})
