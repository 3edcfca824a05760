"""Walks folders, prefixes and globs object by object, without ever holding the list of them."""

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from fsspec import AbstractFileSystem
from fsspec.utils import glob_translate

from pipeline.storage.entries import Entry, Version, local_version, version_of
from pipeline.storage.filesystems import is_local, is_s3, protocol_of, safe_url

_MAGIC = re.compile(r"[*?\[]")
Found = tuple[str, Version]
"""Path and version of one file."""


class _Scope(NamedTuple):
    """Which files below ``root`` to find."""

    root: str
    begin: str = ""
    """How the first name below ``root`` begins."""
    depth: int | None = None
    """Folders between ``root`` and a file, at most."""
    hidden: bool = False
    """Whether names that begin with "." or "_" count."""


def is_glob(path: str) -> bool:
    """Tell whether a path that names nothing itself is a pattern."""
    return _MAGIC.search(path) is not None


def iter_objects(fs: AbstractFileSystem, uri: str, path: str, skipped: Counter[str]) -> Iterator[Entry]:
    """Yield every file below a folder, but none whose name or folder's name begins with "." or "_".

    What is no regular file, and links to folders, which are not followed, count in ``skipped``. The order is the
    store's. ``uri`` is the public name of ``path``.
    """
    for name, version in _walk(fs, _Scope(path), skipped):
        yield _entry(uri, path, name, version)


def iter_glob(fs: AbstractFileSystem, uri: str, pattern: str) -> Iterator[Entry]:
    """Yield exactly the files that a pattern matches: ``*`` within a name, ``**`` across folders.

    ``uri`` is the public name of the pattern.
    """
    matches = re.compile(glob_translate(pattern)).fullmatch
    literal = pattern[: _MAGIC.search(pattern).start()]  # type: ignore[union-attr]
    root, _, begin = literal.rpartition("/")
    depth = None if "**" in pattern else pattern[len(root) :].count("/") - 1
    root_uri = uri[: len(uri) - len(pattern) + len(root)]
    for name, version in _walk(fs, _Scope(root or fs.root_marker, begin, depth, hidden=True), Counter()):
        if matches(name):
            yield _entry(root_uri, root, name, version)


def _entry(root_uri: str, root: str, path: str, version: Version) -> Entry:
    web = protocol_of(path) in {"http", "https"}
    return Entry(safe_url(path) if web else root_uri + path[len(root.rstrip("/")) :], path, *version)


def _walk(fs: AbstractFileSystem, scope: _Scope, skipped: Counter[str]) -> Iterator[Found]:
    if is_s3(fs):
        return _walk_s3(fs, scope)
    if is_local(fs):
        return _walk_local(scope, skipped)
    return _walk_any(fs, scope)


def _walk_s3(fs: AbstractFileSystem, scope: _Scope) -> Iterator[Found]:
    """List page by page, 1,000 keys a request, folders and all."""
    bucket, key, _ = fs.split_path(scope.root)
    folder = f"{key.rstrip('/')}/" if key else ""
    request = {"Bucket": bucket, "Prefix": folder + scope.begin}
    while True:
        page = fs.call_s3("list_objects_v2", **request)
        for item in page.get("Contents", []):
            name = item["Key"]
            if not name.endswith("/") and (scope.hidden or not _is_hidden(name[len(folder) :])):
                yield f"{bucket}/{name}", version_of(item | {"size": item["Size"]})
        if not page["IsTruncated"]:
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


def _walk_local(scope: _Scope, skipped: Counter[str]) -> Iterator[Found]:
    pending = [(scope.root, 0)]
    while pending:
        folder, level = pending.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if _is_left_out(entry.name, level, scope):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if scope.depth is None or level < scope.depth:
                        pending.append((entry.path, level + 1))
                    continue
                status = _status(entry)
                if status is None or stat.S_ISREG(status.st_mode):
                    yield entry.path, local_version(status) if status else Version()
                else:
                    skipped["link to a folder" if stat.S_ISDIR(status.st_mode) else "special file"] += 1


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """Return what a name leads to; None for a link to nothing, or a file that went away meanwhile."""
    try:
        return entry.stat()
    except FileNotFoundError:
        return None


def _walk_any(fs: AbstractFileSystem, scope: _Scope) -> Iterator[Found]:
    """List folder by folder; one folder's names are in memory."""
    pending = [(scope.root, 0)]
    while pending:
        folder, level = pending.pop()
        for info in fs.ls(folder, detail=True):
            path = info["name"]
            name = path.rstrip("/").rpartition("/")[2]
            itself = path.rstrip("/") == folder.rstrip("/")
            if itself or _is_left_out(name, level, scope):
                continue
            if info["type"] != "directory":
                yield path, version_of(info)
            elif scope.depth is None or level < scope.depth:
                pending.append((path, level + 1))


def _is_left_out(name: str, level: int, scope: _Scope) -> bool:
    return (level == 0 and not name.startswith(scope.begin)) or (not scope.hidden and _is_hidden(name))


def _is_hidden(path: str) -> bool:
    return any(part.startswith((".", "_")) and part not in (".", "..") for part in path.split("/"))
