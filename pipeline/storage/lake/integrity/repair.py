"""Repairs a damaged output as far as possible: the work of ``camlake verify --repair``.

A commit counts whole or not at all. Where one of its files is lost or changed, or where its rows break a rule, its
record is removed, and the next run of ``camlake annotate`` works on its images again. Manifests are rebuilt from the
commit records that remain.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipeline.storage.lake.commit import remove_strays, with_reasons
from pipeline.storage.lake.empty_tables import damaged_empty_files, rewrite_empty_file
from pipeline.storage.lake.encoding import in_row_groups
from pipeline.storage.lake.integrity.compacted import replaced_files, sound_compactions
from pipeline.storage.lake.integrity.documents import RunDocuments, read_documents, record_agrees
from pipeline.storage.lake.integrity.file_checks import damaged_files, damaged_plans
from pipeline.storage.lake.integrity.row_checks import UNPLANNED, add_runs_and_plans, plan_files, row_checks
from pipeline.storage.lake.layout import DATA_NAME, LakePaths, new_run_id
from pipeline.storage.lake.lease import lease_when_free, silent
from pipeline.storage.lake.query import committed_views, file_urls, files_with
from pipeline.storage.lake.records import (
    committed_files,
    load_runs,
    manifest_path,
    no_output,
    with_commits,
    with_compactions,
    write_record,
)
from pipeline.storage.lake.rows import plan_rows
from pipeline.storage.lake.whole_objects import list_data_files, read_many, remove_many, write_whole
from schemas.errors import StoreError
from schemas.runs import CommitRecord, Compaction, DataFile, RunManifest
from schemas.tables import TABLES

Kept = dict[str, list[CommitRecord]]
"""The commit records of each run that remain, by the run's id."""


def repair(fs: AbstractFileSystem, root: str, wait_s: float = 0.0, say: Callable[[str], None] = silent) -> list[str]:
    """Repair an output under its lease and return the repairs, one line each; ``verify`` finds remaining problems.

    Raises StoreError where there is no output, where it is of a newer version and where the store refuses, HeldError
    where a run holds the output's lease for longer than ``wait_s``; ``say`` gets a line where it is waited for.
    """
    with lease_when_free(fs, root, new_run_id(), wait_s, say):
        documents = read_documents(fs, root)
        if not documents:
            raise no_output(fs.unstrip_protocol(root))
        compactions, undone = sound_compactions(fs, root)
        kept, said = _sound_commits(fs, root, documents, compactions)
        runs = _bases(documents, kept)
        said += undone + _remove_bad_plans(fs, root, list(runs.values()))
        said += _drop_faulty(fs, root, runs, kept, compactions)
        for run in documents:
            said += _write_run(fs, root, run, runs.get(run.run_id), kept[run.run_id], compactions)
        strays = remove_strays(fs, root, load_runs(fs, root))
        said += [f"{path}: removed; no commit record names it" for path in strays]
        for path in damaged_empty_files(fs, root):
            rewrite_empty_file(fs, root, path)
            said.append(f"{path}: written anew; it has no rows")
        return said


def _sound_commits(
    fs: AbstractFileSystem, root: str, documents: Sequence[RunDocuments], compactions: Sequence[Compaction]
) -> tuple[Kept, list[str]]:
    """Return the commit records whose files are unchanged, and one line with the reason for each dropped record.

    Files that a compaction replaced are no longer needed.
    """
    paths, listed, said = LakePaths(root), list_data_files(fs, root), []
    replaced = replaced_files(compactions)
    kept: Kept = {}
    for run in documents:
        edited = set(run.changed) if run.manifest else set()  # Without a manifest, edited records are the best source.
        commits = [
            record
            for path, record in run.committed().items()
            if path not in edited and record_agrees(record, run.run_id, path)
        ]
        commits += _commits_of_manifest(run, commits)
        needed = [file for record in commits for file in record.files if file.path not in replaced]
        damage = damaged_files(fs, paths, needed, listed)
        kept[run.run_id] = []
        for record in sorted(commits, key=lambda record: record.task):
            wrong = [damage[file.path] for file in record.files if file.path in damage]
            if wrong:
                said.append(_dropped(record, wrong[0]))
            else:
                kept[run.run_id].append(record)
    return kept, said


def _dropped(record: CommitRecord, why: str) -> str:
    n_images = record.images + record.rejected
    return f"commit {record.task} of run {record.run_id}: taken back with its {n_images} images, because of {why}"


def _commits_of_manifest(run: RunDocuments, commits: Sequence[CommitRecord]) -> list[CommitRecord]:
    """Return commit records, made from the manifest, for the manifest's files that no readable record names."""
    if run.manifest is None or run.manifest.status == "running":
        return []
    named = {file.path for record in commits for file in record.files}
    tasks: defaultdict[str, list[DataFile]] = defaultdict(list)
    for file in run.manifest.files:
        name = DATA_NAME.fullmatch(file.path.rpartition("/")[2])
        if file.path not in named and name and name[1] == run.run_id and file.table in TABLES:
            task = file.path.rpartition(f"part-{run.run_id}-")[2].removesuffix(".parquet").rpartition("-")[0]
            tasks[task].append(file)
    taken = {record.task for record in commits}
    new = [task for task in sorted(tasks) if task and task not in taken]
    rebuilt = [CommitRecord.of(run.run_id, task, tasks[task]) for task in new]
    if rebuilt:  # Only the sum over all commits is known.
        others = sum(record.maps_without_box for record in commits)
        rest = max(0, run.manifest.counts.maps_without_box - others)
        rebuilt[0] = rebuilt[0].model_copy(update={"maps_without_box": rest})
    return rebuilt


def _bases(documents: Sequence[RunDocuments], kept: Kept) -> dict[str, RunManifest]:
    """Return for each run the base of a new manifest: its first one, its present one, or one of the same model."""
    known = {run.run_id: base for run in documents if (base := run.began or run.manifest)}
    for run in documents:
        if run.run_id not in known and kept[run.run_id]:
            parts = kept[run.run_id][0].files[0].path.split("/")
            model, date = (part.partition("=")[2] for part in parts[1:3])
            others = [base for base in known.values() if base.model == model]
            if others:
                known[run.run_id] = others[-1].model_copy(update={"run_id": run.run_id, "date": date})
            else:
                kept[run.run_id].clear()
    return {run_id: with_commits(base, kept[run_id]) for run_id, base in known.items()}


def _remove_bad_plans(fs: AbstractFileSystem, root: str, runs: Sequence[RunManifest]) -> list[str]:
    bad = damaged_plans(fs, root, plan_files(fs, root, runs))
    remove_many(fs, [LakePaths(root).full(path) for path in bad])
    return [f"{path}: removed" for path in bad]


def _drop_faulty(
    fs: AbstractFileSystem,
    root: str,
    runs: dict[str, RunManifest],
    kept: Kept,
    compactions: Sequence[Compaction],
) -> list[str]:
    """Remove commits with rows that break a rule until no row breaks one; then write the missing plans.

    Raises StoreError where rows of a compaction break a rule.
    """
    merged = {file.path for one in compactions for file in one.files}
    said: list[str] = []
    while True:
        files = committed_files(with_compactions(list(runs.values()), compactions))
        plans = plan_files(fs, root, list(runs.values()))
        with committed_views(fs, root, files + plans) as con:
            add_runs_and_plans(con, list(runs.values()), file_urls(fs, root, plans, "plan"))
            con.execute("CREATE TABLE faulty (run_id VARCHAR, image_id VARCHAR)")
            for check in row_checks():
                if check is not UNPLANNED:
                    con.execute(f"INSERT INTO faulty SELECT DISTINCT run_id, image_id FROM ({check.faults})")
            paths = set()
            for table in TABLES:
                own = [file.path for file in files if file.table == table]
                by_url = dict(zip(file_urls(fs, root, files, table), own, strict=True))
                paths |= {by_url[url] for url in files_with(con, by_url, "faulty")}
            if not paths:
                return said + _complete_plans(fs, root, con.sql(_UNPLANNED_ROWS).to_arrow_table())
        if broken := sorted(paths & merged):
            raise StoreError(f"{broken[0]}: rows of a compaction break a rule; put the output back from a copy")
        for run_id, run in runs.items():
            faulty = [record for record in kept[run_id] if any(file.path in paths for file in record.files)]
            said += [_dropped(record, "rows that break a rule") for record in faulty]
            kept[run_id] = [record for record in kept[run_id] if record not in faulty]
            runs[run_id] = with_commits(run, kept[run_id])


_UNPLANNED_ROWS = """
SELECT run_id, image_id, uri, etag, size_bytes, modified_at, uri AS path
FROM all_endings ANTI JOIN plans USING (run_id, image_id) ORDER BY run_id, image_id
"""


def _complete_plans(fs: AbstractFileSystem, root: str, rows: pa.Table) -> list[str]:
    """Write plans for the rows that no plan names, whose plan was lost; return what was done."""
    paths, said = LakePaths(root), []
    for run_id in rows["run_id"].unique().to_pylist():
        own = rows.filter(pc.equal(rows["run_id"], run_id))
        path = f"{paths.plan_dir(run_id)}/part-rebuilt.parquet"
        write_whole(fs, paths.full(path), in_row_groups([plan_rows(own)]))
        said.append(f"{path}: written for {len(own)} inputs that no plan named")
    return said


def _write_run(
    fs: AbstractFileSystem,
    root: str,
    run: RunDocuments,
    base: RunManifest | None,
    commits: Sequence[CommitRecord],
    compactions: Sequence[Compaction],
) -> list[str]:
    """Rewrite the documents of one run so that they agree with its remaining commits; return the changes."""
    paths, said = LakePaths(root), []
    wanted = {paths.commit_path(run.run_id, record.task): record for record in commits}
    gone = [path for path in (*run.commits, *run.unreadable) if path not in wanted]
    remove_many(fs, [paths.full(path) for path in gone])
    said += [f"{path}: removed" for path in gone]
    for path, record in wanted.items():
        if run.commits.get(path) != record or path in run.changed:
            write_record(fs, paths.full(path), record)
            said.append(f"{path}: rebuilt from the manifest")
    if base is None:
        remove_many(fs, [paths.full(path) for path in (paths.manifest_path(run.run_id), paths.began_path(run.run_id))])
        return [*said, f"run {run.run_id}: removed; nothing is left of it"]
    if run.lineage != base.lineage or any("lineage.json" in problem for problem in run.problems):
        write_record(fs, paths.full(paths.lineage_path(run.run_id)), base.lineage)
        said.append(f"{paths.lineage_path(run.run_id)}: rebuilt from the manifest")
    manifest = _rebuilt(fs, root, run, base, commits, compactions)
    if manifest != run.manifest or any("manifest" in problem for problem in run.problems):
        write_record(fs, manifest_path(root, manifest), manifest)
        said.append(f"{paths.manifest_path(run.run_id)}: rebuilt, {manifest.status}")
    if run.began is None and any("began.json" in problem for problem in run.problems):
        write_record(fs, paths.full(paths.began_path(run.run_id)), base.model_copy(update={"files": ()}))
        said.append(f"{paths.began_path(run.run_id)}: rebuilt from the manifest")
    return said


def _rebuilt(
    fs: AbstractFileSystem,
    root: str,
    run: RunDocuments,
    base: RunManifest,
    commits: Sequence[CommitRecord],
    compactions: Sequence[Compaction],
) -> RunManifest:
    """Return the manifest of a run with these commits: complete where they end all of its planned inputs.

    Raises StoreError where the manifest is lost and a compaction replaced files of the run: their rows can't be counted
    any more.
    """
    if run.manifest and run.manifest.status == "running" and not run.problems:
        return run.manifest
    if replaced_files(compactions).intersection(file.path for record in commits for file in record.files):
        if run.manifest is None or run.problems:
            raise StoreError(
                f"{LakePaths(root).manifest_path(run.run_id)} is lost or changed, and camlake compact replaced files of"
                " this run; put the documents of the run back from a copy"
            )
        return run.manifest
    manifest = with_reasons(fs, root, with_commits(base, commits))
    plans = plan_files(fs, root, [manifest])
    plan_data = read_many(fs, [LakePaths(root).full(file.path) for file in plans])
    planned = sum(pq.read_metadata(pa.BufferReader(data)).num_rows for data in plan_data if data)
    counts = manifest.counts
    listed = counts.left_out + counts.already_done + planned - counts.hidden
    counts = counts.model_copy(update={"planned": planned, "listed": listed})
    ended = run.manifest is None or run.manifest.status == "complete"
    complete = ended and planned == counts.annotated + counts.rejected
    ended_at = run.manifest.ended_at if run.manifest and _as_many(run.manifest, manifest) else None
    ended_at = ended_at or datetime.now(UTC)  # Runs that ended earlier counted the removed commits as done.
    status = "complete" if complete else "interrupted"
    summary = run.manifest.summary if run.manifest and _as_many(run.manifest, manifest) else None
    changed = {"counts": counts, "status": status, "ended_at": ended_at, "summary": summary}
    return manifest.model_copy(update=changed)


def _as_many(one: RunManifest, other: RunManifest) -> bool:
    counts = [(run.counts.annotated, run.counts.rejected) for run in (one, other)]
    return counts[0] == counts[1]
