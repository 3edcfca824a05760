"""Reads every document of an output's runs with what is wrong with it, for ``verify`` and ``repair``."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from fsspec import AbstractFileSystem

from pipeline.storage.lake.layout import RUN_ID, RUNS, LakePaths
from pipeline.storage.lake.records import check_version, parse_record, seal_of, with_commits
from pipeline.storage.lake.whole_objects import list_dir, read_many
from schemas.errors import StoreError
from schemas.runs import CommitRecord, Compaction, Lineage, Record, RunManifest
from schemas.tables import TABLES

_RecordType = TypeVar("_RecordType", bound=Record)


@dataclass
class RunDocuments:
    """The documents of one run."""

    run_id: str
    manifest: RunManifest | None = None
    """The manifest; None where it is missing or unreadable."""
    began: RunManifest | None = None
    """The manifest as it was when the run began; version 0.1 kept none."""
    lineage: Lineage | None = None
    commits: dict[str, CommitRecord] = field(default_factory=dict)
    """The readable commit records, by their paths relative to the output."""
    unreadable: list[str] = field(default_factory=list)
    """Paths, relative to the output, of the commit records that can't be read."""
    changed: list[str] = field(default_factory=list)
    """Paths, relative to the output, of the readable documents that were edited."""
    problems: list[str] = field(default_factory=list)

    @property
    def run(self) -> RunManifest | None:
        """Return the manifest with the committed files, as ``load_runs`` gives it."""
        if self.manifest and self.manifest.status == "running":
            return with_commits(self.manifest, list(self.commits.values()))
        return self.manifest

    def committed(self) -> dict[str, CommitRecord]:
        """Return the commit records that count; a record that was written after the end of its run does not count."""
        if self.manifest is None or self.manifest.status == "running" or self.problems:
            return self.commits
        named = {file.path for file in self.manifest.files}
        return {path: one for path, one in self.commits.items() if any(file.path in named for file in one.files)}


def read_documents(fs: AbstractFileSystem, root: str) -> list[RunDocuments]:
    """Return the documents of every run that has begun, oldest first.

    Raises StoreError for a schema version or a table that only a newer camlake knows.
    """
    paths = LakePaths(root)
    names = [path.rstrip("/").rpartition("/")[2] for path in list_dir(fs, paths.full(RUNS))]
    found = (_read(fs, paths, name) for name in names if RUN_ID.fullmatch(name))
    return [one for one in found if one.manifest or one.began or one.commits or one.problems]


def read_compactions(fs: AbstractFileSystem, root: str) -> tuple[list[Compaction], list[str]]:
    """Return the readable compactions, oldest first, and a line for each that can't be read or was edited."""
    paths, found = LakePaths(root), RunDocuments("")
    files = [path for path in list_dir(fs, paths.full(paths.compactions_dir)) if path.endswith(".json")]
    contents = zip(map(paths.relative, files), read_many(fs, files), strict=True)
    records = [_parsed(found, Compaction, data, path) for path, data in contents]
    return [one for one in records if one], found.problems


def _read(fs: AbstractFileSystem, paths: LakePaths, run_id: str) -> RunDocuments:
    run = RunDocuments(run_id)
    places = [paths.manifest_path(run_id), paths.began_path(run_id), paths.lineage_path(run_id)]
    commits = [path for path in list_dir(fs, paths.full(paths.commits_dir(run_id))) if path.endswith(".json")]
    manifest, began, lineage, *records = read_many(fs, [*map(paths.full, places), *commits])
    run.manifest = _parsed(run, RunManifest, manifest, places[0])
    run.began = _parsed(run, RunManifest, began, places[1])
    if places[1] in run.changed:
        run.began = None
    run.lineage = _parsed(run, Lineage, lineage, places[2])
    for path, data in zip(map(paths.relative, commits), records, strict=True):
        if record := _parsed(run, CommitRecord, data, path):
            run.commits[path] = record
        else:
            run.unreadable.append(path)
    for one in (run.manifest, run.began):
        if one:
            check_version(one, places[0])
    files = [file for record in run.commits.values() for file in record.files]
    files += run.manifest.files if run.manifest else ()
    if newer := {file.table for file in files} - TABLES.keys():
        raise StoreError(f"run {run_id} has the table {min(newer)}, which this camlake does not know; update camlake")
    if manifest is None and (began is not None or commits):
        run.problems.append(f"{places[0]}: missing, though the run has begun")
    if run.manifest:
        run.problems += _contradictions(run, run.manifest, places[2])
    return run


def _parsed(run: RunDocuments, kind: type[_RecordType], data: bytes | None, path: str) -> _RecordType | None:
    """Return the document; None where it is missing or unreadable, which is noted in the problems of ``run``."""
    if data is None:
        return None
    try:
        record = parse_record(kind, data, path)
    except StoreError as error:
        run.problems.append(str(error))
        return None
    values = json.loads(data)
    seal = values.pop("seal", None)
    if seal is not None and seal != seal_of(values):
        run.changed.append(path)
        run.problems.append(f"{path}: changed since it was written")
    return record


def _contradictions(run: RunDocuments, manifest: RunManifest, lineage_path: str) -> list[str]:
    """Return the contradictions between the documents of a run, one line each."""
    found = []
    if run.lineage is None:
        found.append(f"{lineage_path}: missing or unreadable")
    elif run.lineage != manifest.lineage:
        found.append(f"{lineage_path}: not the lineage of the manifest")
    for path, record in run.commits.items():
        if not record_agrees(record, run.run_id, path):
            found.append(f"{path}: its numbers are not those of its files")
    if manifest.status == "running":
        return found
    recorded = {file.path: file for record in run.commits.values() for file in record.files}
    listed = {file.path: file for file in manifest.files}
    found += [f"{path}: no commit record names this file" for path in listed if path not in recorded]
    found += [
        f"{path}: manifest and commit record differ about this file"
        for path, file in listed.items()
        if path in recorded and recorded[path] != file
    ]
    for path, record in run.commits.items():
        lost = [file.path for file in record.files if file.path not in listed]
        if lost and len(lost) < len(record.files):
            found.append(f"{lost[0]}: {path} names this file, but the manifest does not")
    tables = {file.table for file in manifest.files} - {"images", "quarantine", *manifest.settings.get("outputs", ())}
    found += [f"run {run.run_id}: has rows of {table}, but its settings don't name it" for table in sorted(tables)]
    return found


def record_agrees(record: CommitRecord, run_id: str, path: str) -> bool:
    """Return whether a commit record is of this run and of the task in its name, and counts the rows of its files."""
    counted = CommitRecord.of(run_id, record.task, record.files)
    own = record.run_id == run_id and path.endswith(f"/{record.task}.json")
    return own and (record.images, record.rejected) == (counted.images, counted.rejected)


def all_problems(documents: Sequence[RunDocuments]) -> list[str]:
    """Return the problems of all runs."""
    return [problem for run in documents for problem in run.problems]
