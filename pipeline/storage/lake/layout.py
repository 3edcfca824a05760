"""Where everything of an output lies, how its objects are written whole, and what its runs say of themselves.

<root>/<table>/model=<name>-<digest8>/date=<YYYY-MM-DD>/part-<run_id>-<task>-<digest of its content>.parquet
<root>/_runs/<run_id>/{lineage.json, manifest.json, plan/*.parquet, commits/<task>.json}
<root>/_runs/lease/<generation>.json
"""

import os
import re
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TypeVar

from fsspec import AbstractFileSystem
from pydantic import ValidationError

from pipeline.storage.filesystems import is_local, read_object
from pipeline.storage.store_failures import store_errors
from schemas.errors import StoreError
from schemas.runs import CommitRecord, Counts, DataFile, Record, RunManifest
from schemas.tables import SCHEMA_VERSION, TABLES, Table

RUNS = "_runs"
TEMP_SUFFIX = ".camlake-tmp"
RUN_ID = re.compile(r"\d{8}T\d{6}(?:\.\d{3})?-[0-9a-f]{6}")
"""As ``new_run_id`` makes it. Those of earlier versions have no milliseconds and sort before others of their second."""
DATA_NAME = re.compile(rf"part-({RUN_ID.pattern})-[A-Za-z0-9._-]+\.parquet")

REQUESTS_AT_ONCE = 16
"""Small objects asked for at the same time: S3 answers one in tens of milliseconds and has no need of an order."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_RecordType = TypeVar("_RecordType", bound=Record)


@dataclass(frozen=True)
class LakePaths:
    """Names the objects of an output. Paths are relative to ``root`` and use ``/``; ``full`` makes them absolute."""

    root: str

    def full(self, path: str) -> str:
        """Return the path on the output's file system; raises StoreError for a path that leaves the output."""
        if path.startswith("/") or ".." in PurePosixPath(path).parts:
            raise StoreError(f"{path!r} leaves the output {self.root}: this output was not written by camlake")
        return f"{self.root.rstrip('/')}/{path}"

    def relative(self, path: str) -> str:
        """Return a path that a listing gave, relative to ``root``."""
        return path.strip("/").removeprefix(self.root.strip("/")).lstrip("/")

    def data_path(self, table: Table, model: str, date: str, run_id: str, task: str) -> str:
        """Return where a task's rows of one table go; raises ValueError for a part that is no plain name."""
        _check_names(model, date, run_id, task)
        return f"{table}/model={model}/date={date}/part-{run_id}-{task}.parquet"

    def run_dir(self, run_id: str) -> str:
        """Return the folder of what a run says of itself; raises ValueError for a run id that is no plain name."""
        _check_names(run_id)
        return f"{RUNS}/{run_id}"

    def manifest_path(self, run_id: str) -> str:
        """Return where a run's manifest lies."""
        return f"{self.run_dir(run_id)}/manifest.json"

    def lineage_path(self, run_id: str) -> str:
        """Return where a run's lineage lies."""
        return f"{self.run_dir(run_id)}/lineage.json"

    def plan_dir(self, run_id: str) -> str:
        """Return the folder of a run's plan: Parquet files of the schema PLAN."""
        return f"{self.run_dir(run_id)}/plan"

    def commits_dir(self, run_id: str) -> str:
        """Return the folder of a run's commit records."""
        return f"{self.run_dir(run_id)}/commits"

    def commit_path(self, run_id: str, task: str) -> str:
        """Return where a task's commit record lies; raises ValueError for a task that is no plain name."""
        _check_names(task)
        return f"{self.commits_dir(run_id)}/{task}.json"

    @property
    def lease_dir(self) -> str:
        """Return the folder of the lease's generations."""
        return f"{RUNS}/lease"


def _check_names(*names: str) -> None:
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} can't stand in a path: letters, digits, '.', '_' and '-' only")


def new_run_id() -> str:
    """Return a run id that sorts by its start: UTC to the millisecond, 24 random bits, 20261123T045512.042-1a2b3c."""
    now = datetime.now(UTC)
    return f"{now:%Y%m%dT%H%M%S}.{now.microsecond // 1000:03d}-{secrets.token_hex(3)}"


def write_whole(fs: AbstractFileSystem, path: str, data: bytes) -> None:
    """Write an object so that no reader ever meets half of it under its name, and replace what was there.

    One PUT on an object store, which shows the object when it is complete; a temporary name and a rename locally.
    Raises StoreError where the store refuses.
    """
    with store_errors(f"{path} can't be written"):
        if is_local(fs):
            _write_and_rename(Path(path), data)
        else:
            fs.pipe_file(path, data)


def _write_and_rename(target: Path, data: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}{TEMP_SUFFIX}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def list_dir(fs: AbstractFileSystem, path: str) -> list[str]:
    """Return the full paths right under a folder as the store has them now, sorted; empty where there is no folder."""
    fs.invalidate_cache()
    with store_errors(f"{path} can't be listed"):
        try:
            return sorted(str(found) for found in fs.ls(path, detail=False))
        except FileNotFoundError:
            return []


def list_data_files(fs: AbstractFileSystem, root: str) -> dict[str, int]:
    """Return every file under the tables' folders as the store has it now: relative path → bytes."""
    layout, found = LakePaths(root), {}
    fs.invalidate_cache()
    with store_errors(f"{root} can't be listed"):
        for table in TABLES:
            for path, info in fs.find(layout.full(table), detail=True).items():
                found[layout.relative(path)] = int(info["size"])
    return found


def read_whole(fs: AbstractFileSystem, path: str) -> bytes | None:
    """Return an object's bytes, None where there is no such object; raises StoreError where the store refuses."""
    with store_errors(f"{path} can't be read"):
        try:
            return read_object(fs, path)
        except FileNotFoundError:
            return None


def read_many(fs: AbstractFileSystem, paths: Sequence[str]) -> list[bytes | None]:
    """Return what ``read_whole`` gives for each path, with many requests at once."""
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return list(pool.map(lambda path: read_whole(fs, path), paths))


def remove_many(fs: AbstractFileSystem, paths: Sequence[str]) -> None:
    """Remove objects, with many requests at once; one that is already gone is no error. Raises StoreError."""

    def remove(path: str) -> None:
        with store_errors(f"{path} can't be removed"), suppress(FileNotFoundError):
            fs.rm_file(path)

    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        list(pool.map(remove, paths))
    fs.invalidate_cache()


def write_record(fs: AbstractFileSystem, path: str, record: Record) -> None:
    """Write a JSON document of a run."""
    write_whole(fs, path, record.model_dump_json(indent=1).encode())


def parse_record(kind: type[_RecordType], data: bytes, path: str) -> _RecordType:
    """Return the JSON document; raises StoreError for one that is none of its kind."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise StoreError(f"{path} is no {kind.__name__}: {where} {problem['msg']}".replace("\n", " ")) from error


def load_commits(fs: AbstractFileSystem, root: str, run_id: str) -> list[CommitRecord]:
    """Return a run's commit records, ordered by task; raises StoreError for an unreadable one."""
    layout = LakePaths(root)
    paths = [path for path in list_dir(fs, layout.full(layout.commits_dir(run_id))) if path.endswith(".json")]
    found = zip(paths, read_many(fs, paths), strict=True)
    return [parse_record(CommitRecord, data, path) for path, data in found if data is not None]


def with_commits(manifest: RunManifest, commits: Sequence[CommitRecord]) -> RunManifest:
    """Return the manifest with the files that the commit records name, and what they count."""
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
    """Return the manifest of every run, oldest first, each with its committed files.

    A finished run's files stand in its manifest; those of a running (or dead) run are taken from its commit records,
    so that rows which are not committed are never seen. Raises StoreError for an unreadable document and for an
    output of a newer schema version; an output without runs gives an empty list.
    """
    layout = LakePaths(root)
    names = [path.rstrip("/").rpartition("/")[2] for path in list_dir(fs, layout.full(RUNS))]
    paths = [layout.full(layout.manifest_path(name)) for name in names if RUN_ID.fullmatch(name)]
    runs = []
    for path, data in zip(paths, read_many(fs, paths), strict=True):
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
