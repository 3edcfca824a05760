"""Walks folders, prefixes, globs and patterns in braces object by object; the list of objects is never in memory.

Patterns in braces are those of shells and of WebDataset: ``{00000..00009}.tar``, ``{train,val}/*.tar``.
"""

import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Literal, NamedTuple

from fsspec import AbstractFileSystem
from fsspec.utils import glob_translate

from pipeline.storage.filesystems import connect, is_local, is_s3, protocol_of
from pipeline.storage.inputs.entries import STAT_THREADS, Entry
from pipeline.storage.inputs.file_names import hidden_part, is_hidden
from pipeline.storage.inputs.s3_pages import list_bucket
from pipeline.storage.inputs.versions import Version, local_version, microseconds, version_of
from pipeline.storage.prefetch import map_ahead
from pipeline.storage.store_failures import store_errors
from schemas.errors import InputError
from schemas.options.config import StorageConfig
from schemas.url_secrets import safe_url

_STAT_CHUNK = 128
"""Files whose versions one thread reads in a row. With fewer files, the threads cost more time than a local disk."""
_FOLDER_THREADS = 8

_MAGIC = re.compile(r"[*?\[]")
_GROUP = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)(?:\.\.(\d+))?")
_MOST = 1_000_000
"""The most names of one pattern; the largest published sets have some 100,000 shards."""
Found = tuple[str, Version]
"""Path and version of one file."""


class _Scope(NamedTuple):
    """Which files below ``root`` to find."""

    root: str
    begin: str = ""
    """The beginning of the first name below ``root``."""
    depth: int | None = None
    """The most folders between ``root`` and a file; None: any number."""
    hidden: bool = False
    """Whether hidden names, see ``is_hidden``, are included."""


def is_glob(path: str) -> bool:
    """Return whether a path is a pattern; the caller knows that no object has this path as its name."""
    return _MAGIC.search(path) is not None


def has_braces(path: str) -> bool:
    """Return whether a path is a pattern in braces."""
    return any("," in group or _RANGE.fullmatch(group) for group in _GROUP.findall(path))


def expand_braces(path: str) -> list[str]:
    """Return every name that a pattern in braces stands for, in its order; the path itself where it has none.

    Raises InputError where there are more than a million.
    """
    paths = list(_expanded(path, [_MOST]))
    return list(dict.fromkeys(paths))


def _expanded(path: str, left: list[int]) -> Iterator[str]:
    for match in _GROUP.finditer(path):
        if has_braces(match[0]):
            for choice in _choices(match[1]):
                yield from _expanded(path[: match.start()] + choice + path[match.end() :], left)
            return
    left[0] -= 1
    if left[0] < 0:
        raise InputError(f"a pattern in braces that stands for more than {_MOST:,} names; use a glob or a manifest")
    yield path


def _choices(group: str) -> Iterable[str]:
    """Return the texts that may replace a group in braces."""
    if match := _RANGE.fullmatch(group):
        first, last, step = int(match[1]), int(match[2]), int(match[3] or 1) or 1
        width = max(len(match[1]), len(match[2])) if match[1].startswith("0") or match[2].startswith("0") else 0
        numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
        return (f"{number:0{width}d}" for number in numbers)
    return group.split(",")


def iter_objects(fs: AbstractFileSystem, uri: str, path: str, skipped: Counter[str]) -> Iterator[Entry]:
    """Yield every file below a folder that is not hidden, see ``is_hidden``.

    ``skipped`` counts hidden files and folders, files that are not regular, and links to folders, which are not
    followed. The order is the store's. ``uri`` is the public name of ``path``.
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
        return _walk_s3(fs, scope, skipped)
    if is_local(fs):
        return _walk_local(scope, skipped)
    return _walk_any(fs, scope, skipped)


def _walk_s3(fs: AbstractFileSystem, scope: _Scope, skipped: Counter[str]) -> Iterator[Found]:
    bucket, key, _ = fs.split_path(scope.root)
    folder = f"{key.rstrip('/')}/" if key else ""
    hidden_folders: set[str] = set()
    for item in list_bucket(fs, bucket, folder + scope.begin):
        name, size_bytes = item["Key"], item.get("Size")
        hidden = None if scope.hidden else hidden_part(name[len(folder) :])
        if hidden and hidden.endswith("/"):
            if hidden not in hidden_folders:
                skipped["hidden folder"] += 1
                hidden_folders.add(hidden)
        elif name.endswith("/"):
            if size_bytes:  # The object that a web console writes for a folder is empty.
                skipped["folder with bytes"] += 1
        elif hidden:
            skipped["hidden file"] += 1
        else:
            tag = item.get("ETag")
            yield (
                f"{bucket}/{name}",
                Version(tag and tag.strip('"'), size_bytes, microseconds(item.get("LastModified"))),
            )


def _walk_local(scope: _Scope, skipped: Counter[str]) -> Iterator[Found]:
    """List folder by folder, and read the versions in threads.

    Threads cost nothing on a local disk; on a network drive with 1 ms an answer they are six times as fast.
    """
    entries = _local_entries(scope, skipped)
    chunks = iter(lambda: list(islice(entries, _STAT_CHUNK)), [])
    for chunk, statuses in map_ahead(lambda chunk: (chunk, [_status(entry) for entry in chunk]), chunks, STAT_THREADS):
        for entry, status in zip(chunk, statuses, strict=True):
            if status is None or stat.S_ISREG(status.st_mode):
                yield entry.path, local_version(status) if status else Version()
            else:
                skipped["link to a folder" if stat.S_ISDIR(status.st_mode) else "special file"] += 1


def _local_entries(scope: _Scope, skipped: Counter[str]) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of the folders that are not folders themselves; links to folders are included."""
    pending = [(scope.root, 0)]
    while pending:
        folder, level = pending.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                is_folder = entry.is_dir(follow_symlinks=False)
                if _is_left_out(entry.name, is_folder, level, scope, skipped):
                    continue
                if not is_folder:
                    yield entry
                elif scope.depth is None or level < scope.depth:
                    pending.append((entry.path, level + 1))


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """Return the status of a file; None for a broken link, a link to itself, or a file that no longer exists.

    Reading such a file later gives the reason for which this one input is rejected.
    """
    try:
        return entry.stat()
    except OSError:
        return None


class _Pending(list[tuple[str, int]]):
    """Folders to list, with their depth: an iterator that continues when more folders are added."""

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return self

    def __next__(self) -> tuple[str, int]:
        if not self:
            raise StopIteration
        return self.pop()


def _walk_any(fs: AbstractFileSystem, scope: _Scope, skipped: Counter[str]) -> Iterator[Found]:
    """List folder by folder, several at once where the filesystem is asynchronous; folder names are in memory."""
    pending = _Pending([(scope.root, 0)])

    def list_one(place: tuple[str, int]) -> tuple[str, int, list[dict[str, Any]]]:
        return *place, fs.ls(place[0], detail=True)

    for folder, level, infos in map_ahead(list_one, pending, _FOLDER_THREADS if fs.async_impl else 1):
        for info in infos:
            path = info["name"]
            name = path.rstrip("/").rpartition("/")[2]
            itself = path.rstrip("/") == folder.rstrip("/")
            is_folder = info["type"] == "directory"
            if itself or _is_left_out(name, is_folder, level, scope, skipped):
                continue
            if not is_folder:
                yield path, version_of(info)
            elif scope.depth is None or level < scope.depth:
                pending.append((path, level + 1))


def _is_left_out(name: str, is_folder: bool, level: int, scope: _Scope, skipped: Counter[str]) -> bool:
    """Return whether a name is outside of the scope or hidden; a hidden name counts in ``skipped``."""
    if level == 0 and not name.startswith(scope.begin):
        return True
    if scope.hidden or not is_hidden(name, is_folder=is_folder):
        return False
    skipped["hidden folder" if is_folder else "hidden file"] += 1
    return True


def what_is(fs: AbstractFileSystem, path: str, url: str) -> Literal["file", "folder"] | None:
    """Return what lies at ``path``, which ``url`` names, by one request at most; None where nothing does."""
    if url.endswith("/") and not is_local(fs):
        return "folder"
    try:
        return "folder" if fs.info(path)["type"] == "directory" else "file"
    except FileNotFoundError:
        return None


def no_input(url: str) -> InputError:
    """Return the error for an input that is not there."""
    hint = "; to match the beginning of a name, end it with *" if protocol_of(url) != "file" else ""
    return InputError(f"no input at {safe_url(url)}: neither a file nor a folder{hint}")


def refuse_missing(url: str, storage: StorageConfig) -> None:
    """Raise InputError where ``url`` names one file or folder, no pattern, that is not there or can't be asked for."""
    fs, path = connect(url, storage, anonymous=storage.anonymous)
    with store_errors(f"can't list {safe_url(url)}", InputError):
        if not has_braces(path) and not is_glob(path) and what_is(fs, path, url) is None:
            raise no_input(url)
