"""All access to storage begins here: URLs become fsspec filesystems, and the stores' failures camlake's errors.

Pass URLs and a StorageConfig between processes, never a filesystem. Each process connects separately, and fsspec keeps
one connection pool for each process, thread and set of options.
"""

import errno
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import known_implementations

from pipeline.storage.fsspec_private import adapt_s3, options_in, path_on, read_s3
from pipeline.storage.store_failures import describe_failure, is_store_failure, store_errors
from schemas.errors import InputError, StoreError, UsageError
from schemas.options.config import StorageConfig
from schemas.url_secrets import has_credentials, safe_url

_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_ALIASES = {"local": "file", "s3a": "s3", "gcs": "gs", "az": "abfs"}
_HOST_IN_PATH = {"file", "s3", "gs", "memory", "http", "https"}
"""Protocols whose filesystem is the same for every host or bucket, because the path contains the host or bucket."""
_S3_ATTEMPTS = 4
"""Most attempts that botocore makes after 5xx answers, throttling and lost connections; it waits about 4 s in all."""

_UNTAGGED_READS = 4
"""How often an object of S3 is asked for where the answer has no version tag."""


def protocol_of(url: str) -> str:
    """Return the protocol of ``url`` in its usual spelling; ``file`` for a path without one."""
    match = _PROTOCOL.match(url)
    protocol = match[1].lower() if match else "file"
    return _ALIASES.get(protocol, protocol)


def connect(url: str, storage: StorageConfig, *, anonymous: bool = False) -> tuple[AbstractFileSystem, str]:
    """Return the filesystem of ``url`` and the exact path on it: no protocol, a local path absolute and normalized.

    Characters such as ``#``, ``?``, ``%``, ``*`` or ``::`` are part of the path; nothing is unquoted or chained. No
    listing is cached. Raises UsageError for a protocol that fsspec does not know or whose package is not installed, for
    options that the filesystem refuses, and for the URL of a bucket that contains a key and a secret.
    """
    protocol = protocol_of(url)
    _refuse_credentials(url)
    try:
        kind = fsspec.get_filesystem_class(protocol)
        if protocol == "file":
            return kind(), _absolute(url)
        options = _options(protocol, storage, anonymous)
        if protocol != "s3":  # s3fs would take "?versionId=" in a key as a version.
            options = options_in(kind, url) | options
        fs = kind(**options)
        if is_s3(fs):
            adapt_s3(fs)
        return fs, path_on(kind, _PROTOCOL.sub(f"{protocol}://", url, count=1))
    except ImportError as error:
        need = str(known_implementations[protocol].get("err", error)).rstrip(".").replace("\n", " ")
        raise UsageError(f"{safe_url(url)}: a package for {protocol}:// is missing: {need}") from error
    except (ValueError, TypeError) as error:
        raise UsageError(f"{safe_url(url)}: can't use {protocol}://: {describe_failure(error)}") from error


class Stores:
    """The filesystems of many URLs; each store is connected once, when the first URL of the store is used."""

    def __init__(self, storage: StorageConfig, *, anonymous: bool = False) -> None:
        """Keep the options; no store is connected yet."""
        self.storage, self.anonymous = storage, anonymous
        self._connected: dict[tuple[str, str], AbstractFileSystem] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for another process, without connections."""
        return vars(self) | {"_connected": {}}

    def filesystem(self, url: str) -> AbstractFileSystem:
        """Return the filesystem of ``url``; raises UsageError as ``connect`` does."""
        protocol = protocol_of(url)
        _refuse_credentials(url)
        host = "" if protocol in _HOST_IN_PATH else url.split("/", 3)[2]
        if (protocol, host) not in self._connected:
            self._connected[protocol, host] = connect(url, self.storage, anonymous=self.anonymous)[0]
        return self._connected[protocol, host]


def _refuse_credentials(url: str) -> None:
    if has_credentials(url):
        raise UsageError(
            f"{safe_url(url)}: a key and a secret can't stand in the URL of a bucket; set AWS_ACCESS_KEY_ID and"
            " AWS_SECRET_ACCESS_KEY, or --profile"
        )


def _absolute(url: str) -> str:
    return os.path.abspath(path_on(LocalFileSystem, url))  # noqa: PTH100 (Path.resolve follows links)


def _options(protocol: str, storage: StorageConfig, anonymous: bool) -> dict[str, Any]:
    if protocol == "s3":
        return _s3_options(storage, anonymous)
    if protocol == "gs":
        return {"use_listings_cache": False} | ({"token": "anon"} if anonymous else {})
    if protocol == "abfs":
        return {"use_listings_cache": False} | ({"anon": True} if anonymous else {})
    return {}


def _s3_options(storage: StorageConfig, anonymous: bool) -> dict[str, Any]:
    """Return the options of s3fs.

    Many stores other than AWS (Ceph, older MinIO, gateways) reject the checksum trailers that newer SDKs add to every
    upload. So checksums are sent only where S3 requires them, unless the user sets AWS_REQUEST_CHECKSUM_CALCULATION or
    AWS_RESPONSE_CHECKSUM_VALIDATION.
    """
    config: dict[str, Any] = {
        "connect_timeout": 10,
        "read_timeout": 60,
        "max_pool_connections": 64,
        "retries": {"mode": "standard", "max_attempts": _S3_ATTEMPTS},
    }
    for setting in ("request_checksum_calculation", "response_checksum_validation"):
        if f"AWS_{setting.upper()}" not in os.environ:
            config[setting] = "when_required"
    options: dict[str, Any] = {"anon": anonymous, "use_listings_cache": False, "config_kwargs": config}
    if storage.endpoint_url:
        options["endpoint_url"] = storage.endpoint_url
    if storage.profile and not anonymous:
        options["profile"] = storage.profile
    return options


def is_local(fs: AbstractFileSystem) -> bool:
    """Return whether ``fs`` is the local filesystem of this machine."""
    return isinstance(fs, LocalFileSystem)


def is_s3(fs: AbstractFileSystem) -> bool:
    """Return whether ``fs`` is s3fs, whose method ``call_s3`` makes requests of the S3 API."""
    return "s3" in fs.protocol and hasattr(fs, "call_s3")


def is_http(fs: AbstractFileSystem) -> bool:
    """Return whether ``fs`` is fsspec's client of web servers."""
    return "http" in fs.protocol


def read_object(fs: AbstractFileSystem, path: str) -> bytes:
    """Return an object's bytes, on S3 by one request; raises the errors of the filesystem.

    S3 sends a version tag with every object. An answer without one is no object, such as a gateway's page; the object
    is asked for a few times, and then an OSError is raised after which the request may succeed.
    """
    if is_s3(fs):
        for _ in range(_UNTAGGED_READS):
            found = read_s3(fs, path, sys.maxsize)
            if found.etag is not None:
                return found.data or b""
        raise OSError(errno.EREMOTEIO, "the answer has no version tag and is none of the store's")
    data: bytes = fs.cat_file(path)
    return data


def canonical_url(url: str) -> str:
    """Return the spelling of ``url`` that ids are made from.

    It has no secrets; a local path is absolute and has no protocol.
    """
    protocol = protocol_of(url)
    if protocol == "file":
        return _absolute(url)
    rest = _PROTOCOL.sub("", url, count=1)
    return safe_url(f"{protocol}://{rest.lstrip('/') if protocol in _HOST_IN_PATH else rest}")


def read_url(url: str, storage: StorageConfig) -> bytes:
    """Return the bytes of one file, such as weights or labels; raises InputError where the file can't be read."""
    fs, path = connect(url, storage)
    with store_errors(f"{safe_url(url)} can't be read", InputError):
        return read_object(fs, path)


def refuse_missing_files(files: Mapping[str, str], storage: StorageConfig) -> None:
    """Raise InputError for the first of the ``files``, by the option that names it, that is not there.

    A store that can't be asked now is left to the verb, which tries longer. So are patterns, and web servers: fsspec
    takes one that refuses to be asked for one that has no such file.
    """
    for flag, url in files.items():
        fs, path = connect(url, storage)
        if is_http(fs):
            continue
        try:
            fs.info(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            if not any(sign in path for sign in "*?[{"):
                raise InputError(f"{flag} {safe_url(url)}: not found") from error
        except Exception as error:
            if not is_store_failure(error):
                raise


def refuse_unwritable(flag: str, url: str, storage: StorageConfig) -> None:
    """Raise StoreError for a folder on this machine, named by the option ``flag``, that can't be made or written in."""
    fs, root = connect(url, storage)
    if is_local(fs):
        there = next(place for place in (root, *map(str, Path(root).parents)) if os.path.lexists(place))
        if not os.path.isdir(there):  # noqa: PTH112 - no error where a folder above may not be read
            raise StoreError(f"{flag} {safe_url(url)}: {there} is no folder")
        if not os.access(there, os.W_OK | os.X_OK):
            raise StoreError(f"{flag} {safe_url(url)}: no permission to write in {there}")
