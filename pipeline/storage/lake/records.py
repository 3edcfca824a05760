"""Read and write the JSON documents of an output's runs, and list the files that they make part of the output.

``load_runs`` raises at the first unreadable document. ``read_documents`` returns the readable documents and the
problems, for ``verify`` and ``repair``.
"""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fsspec import AbstractFileSystem
from pydantic import ValidationError

from pipeline.storage.lake.layout import RUN_ID, RUNS, LakePaths
from pipeline.storage.lake.whole_objects import list_dir, read_many, write_whole
from schemas.errors import StoreError
from schemas.runs import DIGEST_BYTES, CommitRecord, Counts, DataFile, Lineage, Record, RunManifest
from schemas.tables import SCHEMA_VERSION, TABLES

_TO_REPAIR = " (`camlake verify OUT --repair` sets right what can be)"
_RecordType = TypeVar("_RecordType", bound=Record)


def write_record(fs: AbstractFileSystem, path: str, record: Record) -> None:
    """Write a JSON document of a run, with a seal over its content."""
    values = record.model_dump(mode="json")
    write_whole(fs, path, json.dumps(values | {"seal": seal_of(values)}, indent=1).encode())


def seal_of(values: Mapping[str, Any]) -> str:
    """Return the BLAKE2b of a document without its seal, by which ``verify`` finds edited documents."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).hexdigest()


def parse_record(kind: type[_RecordType], data: bytes, path: str) -> _RecordType:
    """Return the document in ``data``; raises StoreError where it is no JSON document of this kind."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        text = f"{path} is no {kind.__name__}: {where} {problem['msg']}{_TO_REPAIR}"
        raise StoreError(text.replace("\n", " ")) from error


class _ParsedManifests:
    """The manifests that this process parsed last, by their content.

    The start of a run asks half a dozen times for all runs. After a year these are 365 manifests of hundreds of files,
    and parsing them takes half a second of CPU each time (`python -m tests.benchmarks.many_runs`).
    """

    MOST_BYTES = 64 * 2**20
    """Of the documents whose manifests are kept; these take about twice as many."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, tuple[RunManifest, int]] = OrderedDict()
        self._bytes = 0

    def manifest(self, data: bytes, path: str) -> RunManifest:
        """Return the manifest in ``data``; raises StoreError where it is none."""
        digest = hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()
        with self._lock:
            if digest in self._kept:
                self._kept.move_to_end(digest)
                return self._kept[digest][0]
        run = parse_record(RunManifest, data, path)
        with self._lock:
            if digest not in self._kept:
                self._kept[digest] = run, len(data)
                self._bytes += len(data)
            while self._bytes > self.MOST_BYTES:
                _, (_, size) = self._kept.popitem(last=False)
                self._bytes -= size
        return run


_PARSED = _ParsedManifests()


def load_commits(fs: AbstractFileSystem, root: str, run_id: str) -> list[CommitRecord]:
    """Return a run's commit records, ordered by task; raises StoreError for an unreadable one."""
    paths = LakePaths(root)
    files = [path for path in list_dir(fs, paths.full(paths.commits_dir(run_id))) if path.endswith(".json")]
    found = zip(files, read_many(fs, files), strict=True)
    return [parse_record(CommitRecord, data, path) for path, data in found if data is not None]


def with_commits(manifest: RunManifest, commits: Sequence[CommitRecord]) -> RunManifest:
    """Return the manifest with the files of the commit records, and with their counts added up."""
    files = tuple(file for record in commits for file in record.files)
    counted = {
        "annotated": sum(record.images for record in commits),
        "rejected": sum(record.rejected for record in commits),
        "boxes": sum(file.rows for file in files if file.table == "boxes"),
        "maps_without_box": sum(record.maps_without_box for record in commits),
    }
    counts = Counts(**{**manifest.counts.model_dump(), **counted})
    return manifest.model_copy(update={"files": files, "counts": counts})


def load_runs(fs: AbstractFileSystem, root: str) -> list[RunManifest]:
    """Return the manifests of all runs, oldest first, each with its committed files; empty where there is no run.

    The files of a run that has ended stand in its manifest. The files of a running or dead run are those that its
    commit records name, so that rows which are not committed are never seen. Raises StoreError for an unreadable
    document and for an output of a newer schema version.
    """
    paths = LakePaths(root)
    names = [path.rstrip("/").rpartition("/")[2] for path in list_dir(fs, paths.full(RUNS))]
    manifests = [paths.full(paths.manifest_path(name)) for name in names if RUN_ID.fullmatch(name)]
    runs = []
    for path, data in zip(manifests, read_many(fs, manifests), strict=True):
        if data is None:
            if list_dir(fs, path.removesuffix("manifest.json") + "commits"):
                raise StoreError(f"{path} is missing, though the run has commit records{_TO_REPAIR}")
            continue
        run = _PARSED.manifest(data, path)
        check_version(run, path)
        runs.append(with_commits(run, load_commits(fs, root, run.run_id)) if run.status == "running" else run)
    return runs


def check_version(run: RunManifest, path: str) -> None:
    """Raise StoreError for a manifest of a newer schema version."""
    if run.schema_version > SCHEMA_VERSION:
        raise StoreError(f"{path}: schema version {run.schema_version} is newer than this camlake; update camlake")


def committed_files(runs: Sequence[RunManifest], table: str | None = None) -> list[DataFile]:
    """Return the committed files of ``runs``, of one table or of all."""
    return [file for run in runs for file in run.files if table in (None, file.table)]


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
    rows = {table: sum(file.rows for file in record.files if file.table == table) for table in ("images", "quarantine")}
    own = record.run_id == run_id and path.endswith(f"/{record.task}.json")
    return own and rows == {"images": record.images, "quarantine": record.rejected}


def all_problems(documents: Sequence[RunDocuments]) -> list[str]:
    """Return the problems of all runs."""
    return [problem for run in documents for problem in run.problems]
