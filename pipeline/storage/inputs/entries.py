"""Entries: listed inputs before they become rows of the plan. Resolves their URIs and asks stores for versions."""

import os
import posixpath
import re
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

from fsspec.registry import known_implementations

from pipeline.storage.filesystems import Stores, canonical_url, is_local, protocol_of
from pipeline.storage.fsspec_private import path_on
from pipeline.storage.inputs.versions import UNKNOWN, Version, local_version, version_of
from pipeline.storage.names import label_in
from pipeline.storage.store_failures import describe_failure, is_store_failure
from schemas.errors import InputError, RejectedImage, UsageError
from schemas.reasons import Reason

STAT_THREADS = 16
_STAT_CHUNK = 1024


class Entry(NamedTuple):
    """One listed input. ``uri`` is for people and ids; ``path`` is the exact path for the filesystem."""

    uri: str
    path: str
    etag: str | None = None
    size_bytes: int | None = None
    modified_us: int | None = None
    offset: int | None = None
    """Byte of a tar shard or row of a Parquet file; None for a file that is one image."""
    rejected: RejectedImage | None = None
    """The reason why the image can't be read; None for an image that is not rejected."""
    begins_chunk: bool = False
    """Whether the entry is the first of a row group, which can only be read from its beginning."""
    own_id: str | None = None
    """The user's id of the image; image_id is the digest of this id instead of the uri."""


class Container(NamedTuple):
    """A file that holds rows or images: a manifest, a Parquet file, a tar shard."""

    uri: str
    path: str
    version: Version = UNKNOWN


def version_at(stores: Stores, uri: str, path: str) -> Version:
    """Return the object's version; its fields are None where the store has no such object or does not answer."""
    try:
        fs = stores.filesystem(uri)
        if is_local(fs):
            status = os.stat(path)  # noqa: PTH116 (a Path would cost as much as the call)
            return local_version(status) if stat.S_ISREG(status.st_mode) else UNKNOWN
        info = fs.info(path)
    except Exception as error:
        if not (is_store_failure(error) or isinstance(error, UsageError | ValueError)):
            raise
        return UNKNOWN
    return version_of(info) if info["type"] == "file" else UNKNOWN


def with_versions(entries: Iterable[Entry], stores: Stores) -> Iterator[Entry]:
    """Yield the entries in order; where a plain file has neither a tag nor size and time, ask its store.

    At most ``STAT_THREADS`` requests run at once, and one chunk of entries is in memory.
    """

    def complete(entry: Entry) -> Entry:
        etag, size_bytes, modified_us = version_at(stores, entry.uri, entry.path)
        return entry._replace(
            etag=etag,
            size_bytes=size_bytes if entry.size_bytes is None else entry.size_bytes,
            modified_us=modified_us if entry.modified_us is None else entry.modified_us,
        )

    remaining = iter(entries)
    with ThreadPoolExecutor(STAT_THREADS, thread_name_prefix="stat") as pool:
        while chunk := list(islice(remaining, _STAT_CHUNK)):
            completed = pool.map(complete, [entry for entry in chunk if _is_unknown(entry)])
            yield from (next(completed) if _is_unknown(entry) else entry for entry in chunk)


def _is_unknown(entry: Entry) -> bool:
    known = entry.etag or (entry.size_bytes is not None and entry.modified_us is not None)
    return not (known or entry.rejected or entry.offset is not None)


def named_entry(uri: str, base: Container, row: int, stores: Stores, version: Version = UNKNOWN) -> Entry:
    """Return the entry of a uri that row ``row`` of ``base`` names; a relative one lies in the folder of ``base``.

    A uri that no filesystem here can read becomes a rejected entry, not an error. The entry keeps the uri where only a
    package is missing, so that a later run with the package gives the image the same id.
    """
    name = f"{base.uri}#row={row}"
    try:
        absolute = _absolute_uri(uri, base)
        if protocol_of(absolute) in known_implementations:
            name = canonical_url(absolute)
        path = path_on(stores.filesystem(absolute), absolute)
        return Entry(
            name, name if name.startswith("/") else path, version.etag, version.size_bytes, version.modified_us
        )
    except (UsageError, ValueError) as error:
        return Entry(name, base.path, *version, rejected=RejectedImage(Reason.FETCH_FAILED, describe_failure(error)))


def own_id(value: Any, where: str, column: str) -> str:
    """Return the user's own id in a cell of the column of ids as text; raises InputError for an empty one."""
    text = label_in(value)
    if not text:
        raise InputError(f"{where} has no id in column {column}; every image needs one, or leave --id-column out")
    return text


def _absolute_uri(uri: str, base: Container) -> str:
    if uri.startswith("/") or re.match(r"[A-Za-z][A-Za-z0-9+.-]*://|file:", uri):
        return uri
    protocol, slashes, rest = base.uri.partition("://") if protocol_of(base.uri) != "file" else ("", "", base.uri)
    folder = posixpath.dirname(rest)
    while match := re.match(r"(\.{1,2})/+", uri):
        uri = uri[match.end() :]
        if match[1] == "..":
            if slashes and "/" not in folder:
                raise ValueError("the relative uri leaves the store")
            folder = posixpath.dirname(folder)
    return f"{protocol}{slashes}{folder.rstrip('/')}/{uri}"


def in_unicode(entry: Entry) -> Entry:
    """Return the entry; an entry whose name is not UTF-8 is rejected, and the odd bytes in the name are escaped."""
    try:
        entry.uri.encode()
        entry.path.encode()
    except UnicodeEncodeError:
        uri, path = (os.fsencode(name).decode("utf-8", "backslashreplace") for name in (entry.uri, entry.path))
        rejected = RejectedImage(Reason.BAD_NAME, "its name is not valid UTF-8")
        return entry._replace(uri=uri, path=path, rejected=rejected)
    return entry
