"""The JSON documents of an output's runs, commit records and manifests, and the files that they make part of it."""

from collections.abc import Sequence
from typing import TypeVar

from fsspec import AbstractFileSystem
from pydantic import ValidationError

from pipeline.storage.lake.layout import RUN_ID, RUNS, LakePaths
from pipeline.storage.lake.whole_objects import list_dir, read_many, write_whole
from schemas.errors import StoreError
from schemas.runs import CommitRecord, Counts, DataFile, Record, RunManifest
from schemas.tables import SCHEMA_VERSION

_RecordType = TypeVar("_RecordType", bound=Record)


def write_record(fs: AbstractFileSystem, path: str, record: Record) -> None:
    """Write a JSON document of a run."""
    write_whole(fs, path, record.model_dump_json(indent=1).encode())


def parse_record(kind: type[_RecordType], data: bytes, path: str) -> _RecordType:
    """Return the document in ``data``; raises StoreError where it is no JSON document of this kind."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise StoreError(f"{path} is no {kind.__name__}: {where} {problem['msg']}".replace("\n", " ")) from error


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
            continue
        run = parse_record(RunManifest, data, path)
        if run.schema_version > SCHEMA_VERSION:
            raise StoreError(f"{path}: schema version {run.schema_version} is newer than this camlake; update camlake")
        runs.append(with_commits(run, load_commits(fs, root, run.run_id)) if run.status == "running" else run)
    return runs


def committed_files(runs: Sequence[RunManifest], table: str | None = None) -> list[DataFile]:
    """Return the committed files of ``runs``, of one table or of all."""
    return [file for run in runs for file in run.files if table in (None, file.table)]
