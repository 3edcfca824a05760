"""A file of quarantine without rows, so that SQL over the files also works on an output that rejected no image.

It belongs to no run and no commit names it. Its name has the digest of its content, by which ``verify`` finds damage.
"""

import hashlib

from fsspec import AbstractFileSystem

from pipeline.storage.lake.encoding import to_parquet
from pipeline.storage.lake.layout import EMPTY_PATH, LakePaths
from pipeline.storage.lake.whole_objects import read_whole, write_whole
from pipeline.storage.patience import ask_store
from pipeline.storage.store_failures import store_errors
from schemas.tables import TABLES

_TABLE = "quarantine"


def write_empty_quarantine(fs: AbstractFileSystem, root: str, model: str, date: str) -> None:
    """Write a quarantine file without rows, unless the table has a file; raises StoreError."""
    if any(path.endswith(".parquet") for path in _files(fs, root)):
        return
    data = to_parquet(TABLES[_TABLE].schema().empty_table())
    path = f"{_TABLE}/model={model}/date={date}/none-{_digest(data)}.parquet"
    write_whole(fs, LakePaths(root).full(path), data)


def damaged_empty_files(fs: AbstractFileSystem, root: str) -> list[str]:
    """Return the files without rows, as relative paths, whose content has changed; raises StoreError."""
    paths = LakePaths(root)
    found = [(path, match) for path in _files(fs, root) if (match := EMPTY_PATH.fullmatch(path))]
    return [path for path, match in found if _digest(read_whole(fs, paths.full(path)) or b"") != match[3]]


def rewrite_empty_file(fs: AbstractFileSystem, root: str, path: str) -> None:
    """Replace a damaged file without rows; raises StoreError."""
    match = EMPTY_PATH.fullmatch(path)
    assert match
    with store_errors(f"{path} can't be removed"):
        fs.rm_file(LakePaths(root).full(path))
    write_empty_quarantine(fs, root, match[1], match[2])


def _files(fs: AbstractFileSystem, root: str) -> list[str]:
    """Return the files of quarantine as relative paths; nothing is cached."""
    paths = LakePaths(root)
    fs.invalidate_cache()
    found = ask_store(f"{root} can't be listed", lambda: fs.find(paths.full(_TABLE)))
    return [paths.relative(path) for path in found]


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=4).hexdigest()
