"""Read and write the JSON documents of an output's runs, and list the files that they make part of the output.

A compaction is a document beside the runs: it names commits whose files no longer count, and the commits that count in
their place. Its files are shown as files of the newest run of which it replaced some.
"""

import hashlib
import json
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from fsspec import AbstractFileSystem
from pydantic import ValidationError

from pipeline.storage.filesystems import connect
from pipeline.storage.lake.layout import HIDDEN_NAME, RUN_ID, RUNS, LakePaths
from pipeline.storage.lake.whole_objects import copy_many, list_dir, read_many, read_whole, remove_many, write_whole
from schemas.errors import StoreError, UsageError
from schemas.options.config import StorageConfig
from schemas.runs import DIGEST_BYTES, CommitRecord, Compaction, Counts, DataFile, Record, RunManifest
from schemas.tables import SCHEMA_VERSION
from schemas.url_secrets import safe_url

_TO_REPAIR = " (`camlake verify OUT --repair` sets right what can be)"
_RecordType = TypeVar("_RecordType", bound=Record)


def write_record(fs: AbstractFileSystem, path: str, record: Record) -> None:
    """Write a JSON document of a run, with a seal over its content."""
    values = record.model_dump(mode="json")
    write_whole(fs, path, json.dumps(values | {"seal": seal_of(values)}, indent=1).encode())


def seal_of(values: Mapping[str, Any]) -> str:
    """Return the BLAKE2b of a document without its seal, by which ``verify`` finds edited documents."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return digest_of(text.encode())


def digest_of(data: bytes) -> str:
    """Return the BLAKE2b of ``data``, in hex."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).hexdigest()


def parse_record(kind: type[_RecordType], data: bytes, path: str) -> _RecordType:
    """Return the document in ``data``; raises StoreError where it is no JSON document of this kind."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        text = f"{path} is no {kind.__name__}: {where} {problem['msg']}{_TO_REPAIR}"
        raise StoreError(text.replace("\n", " ")) from error


def read_record(fs: AbstractFileSystem, path: str, kind: type[_RecordType]) -> _RecordType | None:
    """Return the document at ``path``, None where there is none; raises StoreError where it is none of this kind."""
    data = read_whole(fs, path)
    return None if data is None else parse_record(kind, data, path)


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
    return _read_records(fs, files, CommitRecord)


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
    return with_compactions(runs, load_compactions(fs, root))


def runs_with_rows(runs: Sequence[RunManifest], model: str | None, where: str) -> list[RunManifest]:
    """Return those of the ``runs`` of the output ``where`` that have rows of ``model``, by default the newest run's.

    Raises StoreError where no run has rows, UsageError for another model than the runs have.
    """
    found = [run for run in runs if run.files]
    if not found:
        raise StoreError(f"{where}: no camlake output with rows here")
    own = [run for run in found if run.model == (model or found[-1].model)]
    if not own:
        raise UsageError(f"--model {model!r}: {where} has {', '.join(sorted({run.model for run in found}))}")
    return own


def no_output(url: str) -> StoreError:
    """Return the error for a place at which there is no output."""
    shown = safe_url(url)
    return StoreError(f"{shown}: no camlake output here; `camlake annotate INPUT --out {shown}` makes one")


def refuse_no_output(url: str, storage: StorageConfig, *, reads_only: bool = True) -> None:
    """Raise StoreError where ``url`` has no run, by one listing; for verbs whose imports take seconds.

    ``reads_only``: whether the verb only reads the output, so that ``--anonymous`` counts for it.
    """
    fs, root = connect(url, storage, anonymous=storage.anonymous and reads_only)
    names = (path.rstrip("/").rpartition("/")[2] for path in list_dir(fs, LakePaths(root).full(RUNS)))
    if not any(RUN_ID.fullmatch(name) for name in names):
        raise no_output(url)


def load_compactions(fs: AbstractFileSystem, root: str) -> list[Compaction]:
    """Return the compactions of an output, oldest first; raises StoreError for an unreadable document."""
    paths = LakePaths(root)
    files = [path for path in list_dir(fs, paths.full(paths.compactions_dir)) if path.endswith(".json")]
    return _read_records(fs, files, Compaction)


def _read_records(fs: AbstractFileSystem, files: Sequence[str], kind: type[_RecordType]) -> list[_RecordType]:
    """Return the documents that are there; raises StoreError for an unreadable one."""
    found = zip(files, read_many(fs, files), strict=True)
    return [parse_record(kind, data, path) for path, data in found if data is not None]


def with_compactions(runs: Sequence[RunManifest], compactions: Sequence[Compaction]) -> list[RunManifest]:
    """Return the runs with the files that count after the compactions, each in the place of the files it replaced."""
    files = {run.run_id: list(run.files) for run in runs}
    for one in compactions:
        gone = set(one.replaced_files)
        own = [run.run_id for run in runs if run.model == one.model]
        touched = [run_id for run_id in own if any(file.path in gone for file in files[run_id])]
        for run_id in touched:
            files[run_id] = [file for file in files[run_id] if file.path not in gone]
        if own:
            files[(touched or own)[-1]] += one.files
    return [run.model_copy(update={"files": tuple(files[run.run_id])}) for run in runs]


def settle_compactions(fs: AbstractFileSystem, root: str) -> None:
    """End the compactions whose grace period is over: remove the replaced files, and give the new files their names.

    Only the holder of the lease may call this. The old names of the new files stay readable for another grace period.
    A call that is interrupted is completed by the next one. One folder, that is one table of one date, comes after the
    other: from the first copy in a folder until its replaced files are removed, a plain glob sees its rows twice.
    """
    paths, now = LakePaths(root), datetime.now(UTC)
    for one in load_compactions(fs, root):
        if one.shown or not one.is_over(now):
            continue
        names = {file.path: shown_path(file.path) for file in one.files}
        new = _by_folder(names)
        for folder, replaced in sorted(_by_folder(one.replaced_files).items()):
            copy_many(fs, {paths.full(path): paths.full(names[path]) for path in new.get(folder, ())})
            remove_many(fs, [paths.full(path) for path in replaced])
        commits = tuple(
            record.model_copy(
                update={
                    "files": tuple(replace(file, path=names[file.path]) for file in record.files),
                }
            )
            for record in one.commits
        )
        changed = {"commits": commits, "shown": True, "since": datetime.now(UTC)}
        changed["replaced_files"] = (*one.replaced_files, *names)
        write_record(fs, compaction_path(root, one), one.model_copy(update=changed))


def _by_folder(files: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for path in files:
        found[path.rpartition("/")[0]].append(path)
    return found


def shown_path(path: str) -> str:
    """Return the path that a new file of a compaction has when the replaced files are gone."""
    folder, _, name = path.rpartition("/")
    hidden = HIDDEN_NAME.fullmatch(name)
    return f"{folder}/{hidden[1]}" if hidden else path


def compaction_path(root: str, one: Compaction) -> str:
    """Return the full path of the record of a compaction."""
    paths = LakePaths(root)
    return paths.full(f"{paths.compactions_dir}/{one.compaction_id}-{one.model}.json")


def counted_commits(fs: AbstractFileSystem, root: str, runs: Sequence[RunManifest]) -> list[CommitRecord]:
    """Return the commits that count after all compactions, those of each run in order; ``runs`` is from ``load_runs``.

    ``runs`` may have been loaded before a compaction: what counts are the files that they name.

    The files of the commits are the files of ``runs``; raises StoreError where a file has no commit record.
    """
    found = {(run.run_id, record.task): record for run in runs for record in load_commits(fs, root, run.run_id)}
    models = {run.model for run in runs}
    for one in load_compactions(fs, root):
        if one.model in models:
            found |= {(record.run_id, record.task): record for record in one.commits}
    files = {file.path for file in committed_files(runs)}
    commits = [record for record in found.values() if all(file.path in files for file in record.files)]
    lost = files - {file.path for record in commits for file in record.files}
    if lost:
        raise StoreError(f"{root}: no commit record names {min(lost)}; it was removed from _runs{_TO_REPAIR}")
    return commits


def check_version(run: RunManifest, path: str) -> None:
    """Raise StoreError for a manifest of a newer schema version."""
    if run.schema_version > SCHEMA_VERSION:
        raise StoreError(f"{path}: schema version {run.schema_version} is newer than this camlake; update camlake")


def committed_files(runs: Sequence[RunManifest], table: str | None = None) -> list[DataFile]:
    """Return the committed files of ``runs``, of one table or of all."""
    return [file for run in runs for file in run.files if table in (None, file.table)]


def committed_settings(fs: AbstractFileSystem, root: str, model: str) -> dict[str, Any] | None:
    """Return the settings of the newest run of ``model`` that has committed rows; None where there is none."""
    for run in reversed(load_runs(fs, root)):
        if run.model == model and run.files:
            return run.settings
    return None


def manifest_path(root: str, run: RunManifest) -> str:
    """Return the full path of a run's manifest."""
    paths = LakePaths(root)
    return paths.full(paths.manifest_path(run.run_id))
