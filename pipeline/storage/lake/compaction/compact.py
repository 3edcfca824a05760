"""Compacts an output: the work of ``camlake compact``.

Whole commits are merged, those of one date and model, so that an image's rows stay together in one commit. The new
files are written first, under names that only camlake's readers know; then one record puts the new commits in the place
of the old ones. A run that dies before the record leaves files that the next run removes; after it, nothing is left to
do but to remove the old files, which later runs do when the grace period is over.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import duckdb
import pyarrow as pa
from fsspec import AbstractFileSystem

from pipeline.storage.lake.commit import remove_leftovers, remove_strays
from pipeline.storage.lake.compaction.dropped import Expiry, dropped_endings
from pipeline.storage.lake.compaction.merge import Dropped, merged_commit
from pipeline.storage.lake.empty_tables import write_empty_quarantine
from pipeline.storage.lake.encoding import in_row_groups
from pipeline.storage.lake.layout import LakePaths, new_run_id
from pipeline.storage.lake.lease import Lease, lease_when_free
from pipeline.storage.lake.query import committed_views, file_urls, files_with
from pipeline.storage.lake.records import (
    committed_files,
    compaction_path,
    counted_commits,
    digest_of,
    load_compactions,
    load_runs,
    no_output,
    settle_compactions,
    write_record,
)
from pipeline.storage.lake.whole_objects import write_whole
from pipeline.storage.patience import PATIENCE
from schemas.errors import UsageError
from schemas.runs import CommitRecord, Compaction, DataFile, RunManifest

SMALL_SHARE = 0.5
"""A commit is merged with others where its largest file has less than this share of the wanted size."""


@dataclass(frozen=True)
class Wanted:
    """The options of a compaction."""

    file_bytes: int
    """Size that the largest file of a merged commit should have."""
    grace_s: float
    expiry: Expiry


@dataclass(frozen=True)
class Compacted:
    """What was done to the rows of one model."""

    model: str
    files_before: int = 0
    files_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    dropped: int = 0
    """Endings, of images and of rejected inputs, whose rows were dropped."""
    replaced: int = 0
    """Files that no longer count; they stay for the grace period."""
    waits_until: datetime | None = None
    """Set where nothing was done, because the files of an earlier compaction must be removed first."""


def compact(
    fs: AbstractFileSystem, root: str, wanted: Wanted, say: Callable[[str], None], wait_s: float = 0.0
) -> list[Compacted]:
    """Compact the rows of every model of an output, under its lease, and return what was done.

    Raises StoreError where there is no output or where it can't be read, HeldError where a run holds the output for
    longer than ``wait_s``, and UsageError where the output lacks a model that is to expire.
    """
    compaction_id = new_run_id()
    with lease_when_free(fs, root, compaction_id, wait_s, say) as lease:
        remove_leftovers(fs, root, lease.generation)
        runs = load_runs(fs, root)
        if not runs:
            raise no_output(fs.unstrip_protocol(root))
        models = sorted({run.model for run in runs if run.files})
        if unknown := sorted(wanted.expiry.models.difference(models)):
            raise UsageError(f"--expire-model {unknown[0]!r}: this output has {', '.join(models) or 'none'}")
        waiting = {one.model: one for one in load_compactions(fs, root) if not one.shown}
        done = []
        for model in models:
            if model in waiting:
                done.append(Compacted(model, waits_until=waiting[model].ends_at))
                continue
            say(f"{model}: reading what counts")
            done.append(_compact_model(fs, root, lease, compaction_id, model, runs, wanted))
        lease.assert_held()
        settle_compactions(fs, root)
        remove_strays(fs, root, load_runs(fs, root), lease.generation)
        write_empty_quarantine(fs, root, runs[-1].model, runs[-1].date)
        return done


def _compact_model(
    fs: AbstractFileSystem,
    root: str,
    lease: Lease,
    compaction_id: str,
    model: str,
    runs: Sequence[RunManifest],
    wanted: Wanted,
) -> Compacted:
    own = [run for run in runs if run.model == model]
    files, commits = committed_files(own), counted_commits(fs, root, own)
    with committed_views(fs, root, files) as con:
        dropped = dropped_endings(con, model, wanted.expiry)
        touched = _touched(con, fs, root, commits, dropped)
    new: list[CommitRecord] = []
    old: list[CommitRecord] = []
    drops = Dropped.of(dropped)
    for number, group in enumerate(_groups(commits, touched, wanted.file_bytes)):
        lease.assert_held()
        merged = merged_commit(fs, root, compaction_id, f"{number:06d}", group, drops)
        new += [merged] if merged else []
        old += group
    n_bytes = sum(file.size_bytes for file in files)
    if not old:
        return Compacted(model, len(files), len(files), n_bytes, n_bytes)
    listed = _write_dropped(fs, root, compaction_id, model, dropped) if len(dropped) else None
    record = Compaction(
        compaction_id=compaction_id,
        model=model,
        since=datetime.now(UTC),
        grace_s=wanted.grace_s,
        commits=tuple(new),
        replaced=tuple(f"{one.run_id}/{one.task}" for one in old),
        replaced_files=tuple(file.path for one in old for file in one.files),
        dropped=listed,
    )
    with PATIENCE.hurried():  # When the lease has expired, another run removes the files that this record names.
        lease.assert_held()
        write_record(fs, compaction_path(root, record), record)
    gone = [file for one in old for file in one.files]
    change = sum(file.size_bytes for file in record.files) - sum(file.size_bytes for file in gone)
    n_files = len(files) - len(gone) + len(record.files)
    return Compacted(model, len(files), n_files, n_bytes, n_bytes + change, len(dropped), len(gone))


def _touched(
    con: duckdb.DuckDBPyConnection,
    fs: AbstractFileSystem,
    root: str,
    commits: Sequence[CommitRecord],
    dropped: pa.Table,
) -> set[int]:
    """Return the places of the commits that have rows of dropped endings."""
    con.register("dropped_rows", dropped)
    found = set()
    for table in ("images", "quarantine"):
        urls = {url: place for place, commit in enumerate(commits) for url in file_urls(fs, root, commit.files, table)}
        found |= {urls[url] for url in files_with(con, urls, "dropped_rows")}
    return found


def _groups(commits: Sequence[CommitRecord], touched: set[int], file_bytes: int) -> Iterator[list[CommitRecord]]:
    """Yield the commits to merge, of one date each, up to ``file_bytes`` of their largest table.

    A commit that is large and whole stays as it is, and so does one with which no other can be merged.
    """
    by_date: dict[str, list[int]] = defaultdict(list)
    for place, commit in enumerate(commits):
        if commit.files and (place in touched or _weight([commit]) < file_bytes * SMALL_SHARE):
            by_date[commit.files[0].path.split("/")[2]].append(place)
    for places in by_date.values():
        groups: list[list[int]] = [[]]
        for place in places:
            if groups[-1] and _weight([commits[one] for one in [*groups[-1], place]]) > file_bytes:
                groups.append([])
            groups[-1].append(place)
        for group in groups:
            if len(group) > 1 or touched.intersection(group):
                yield [commits[one] for one in group]


def _weight(commits: Sequence[CommitRecord]) -> int:
    """Return the bytes of the largest table of the commits together."""
    sizes: dict[str, int] = defaultdict(int)
    for commit in commits:
        for file in commit.files:
            sizes[file.table] += file.size_bytes
    return max(sizes.values(), default=0)


def _write_dropped(fs: AbstractFileSystem, root: str, compaction_id: str, model: str, dropped: pa.Table) -> DataFile:
    paths, data = LakePaths(root), in_row_groups([dropped])
    path = f"{paths.compactions_dir}/{compaction_id}-{model}.dropped.parquet"
    write_whole(fs, paths.full(path), data)
    digest = digest_of(data)
    return DataFile(table="dropped", path=path, rows=len(dropped), size_bytes=len(data), digest=digest)
