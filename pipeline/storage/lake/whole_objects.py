"""Reads, writes, lists and removes whole objects of a store, on any fsspec file system."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

from fsspec import AbstractFileSystem

from pipeline.storage.filesystems import is_local, read_object
from pipeline.storage.lake.layout import EMPTY_PATH, LakePaths
from pipeline.storage.lake.staged import StagedFile
from pipeline.storage.patience import ask_store
from pipeline.storage.store_failures import store_errors
from schemas.errors import StoreError
from schemas.tables import TABLES

REQUESTS_AT_ONCE = 16
"""Requests for small objects at the same time: S3 answers each in tens of milliseconds."""


def write_whole(fs: AbstractFileSystem, path: str, data: bytes) -> None:
    """Write an object in one step and replace an older object of this name; no reader ever sees a part of it.

    An object store gets one PUT and shows the object when it is complete. A local file is written under a temporary
    name and renamed; file and folders are synced to the disk. Raises StoreError where the store refuses.
    """

    def write() -> None:
        if is_local(fs):
            StagedFile.write(Path(path), data).show()
        else:
            fs.pipe_file(path, data)

    ask_store(f"{path} can't be written", write)


def copy_whole(fs: AbstractFileSystem, path: str, target: str) -> None:
    """Copy an object, on an object store by one request to it; raises StoreError where there is none, and as others do.

    No reader ever sees a part of ``target``.
    """
    if not is_local(fs):
        try:
            ask_store(f"{path} can't be copied", partial(fs.cp_file, path, target))
        except NotImplementedError:  # SFTP, FTP and SMB of fsspec copy nothing by themselves.
            pass
        else:
            return
    data = read_whole(fs, path)
    if data is None:
        raise StoreError(f"{path} is missing (`camlake verify` says what else)")
    write_whole(fs, target, data)


def copy_many(fs: AbstractFileSystem, targets: Mapping[str, str]) -> None:
    """Copy objects, each to its target, several at a time; raises what ``copy_whole`` does."""
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        list(pool.map(partial(copy_whole, fs), targets, targets.values()))
    fs.invalidate_cache()


def list_dir(fs: AbstractFileSystem, path: str) -> list[str]:
    """Return the full paths directly under a folder, sorted; empty where there is no folder. Nothing is cached."""

    def names() -> list[str]:
        fs.invalidate_cache()
        try:
            return sorted(str(found) for found in fs.ls(path, detail=False))
        except FileNotFoundError:
            return []

    return ask_store(f"{path} can't be listed", names)


def list_data_files(fs: AbstractFileSystem, root: str) -> dict[str, int]:
    """Return the size in bytes of each file under the tables' folders, by its relative path. Nothing is cached.

    A file of quarantine without rows is left out.
    """
    paths, found = LakePaths(root), {}
    fs.invalidate_cache()
    for table in TABLES:
        files = ask_store(f"{root} can't be listed", partial(fs.find, paths.full(table), detail=True))
        for path, info in files.items():
            if not EMPTY_PATH.fullmatch(relative := paths.relative(path)):
                found[relative] = int(info["size"])
    return found


def read_whole(fs: AbstractFileSystem, path: str) -> bytes | None:
    """Return an object's bytes, None where there is no such object; raises StoreError where the store refuses."""

    def read() -> bytes | None:
        try:
            return read_object(fs, path)
        except FileNotFoundError:
            return None

    return ask_store(f"{path} can't be read", read)


def read_many(fs: AbstractFileSystem, paths: Sequence[str]) -> list[bytes | None]:
    """Return what ``read_whole`` returns for each path, with REQUESTS_AT_ONCE requests at the same time."""
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return list(pool.map(lambda path: read_whole(fs, path), paths))


def remove_many(fs: AbstractFileSystem, paths: Sequence[str]) -> None:
    """Remove objects; a missing object is no error. Raises StoreError where the store refuses."""

    def remove(path: str) -> None:
        with suppress(FileNotFoundError):
            fs.rm_file(path)

    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        list(pool.map(lambda path: ask_store(f"{path} can't be removed", lambda: remove(path)), paths))
    fs.invalidate_cache()


def remove_secrets(fs: AbstractFileSystem, root: str, run_id: str | None = None) -> None:
    """Remove the secrets of a run's plan, or of the plans of all runs; raises StoreError where the store refuses."""
    paths = LakePaths(root)
    folder = paths.full(f"{paths.secrets_dir}/{run_id}" if run_id else paths.secrets_dir)
    fs.invalidate_cache()
    if is_local(fs):
        with store_errors(f"{folder} can't be removed"), suppress(FileNotFoundError):
            fs.rm(folder, recursive=True)
    else:
        remove_many(fs, ask_store(f"{folder} can't be listed", lambda: fs.find(folder)))
