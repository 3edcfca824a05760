"""Reads objects of any store, at most a little more than the allowed bytes, and only in the listed version."""

import os
import stat

from fsspec import AbstractFileSystem

from pipeline.storage.filesystems import is_http, is_local, is_s3, read_object
from pipeline.storage.fsspec_private import ObjectRead, read_http, read_s3
from pipeline.storage.inputs.s3_objects import S3Objects
from pipeline.storage.inputs.versions import OtherLengthError, check_version, version_of
from schemas.errors import RejectedImage
from schemas.reasons import Reason

Fetched = bytes | RejectedImage
"""An image's bytes, or the rejection with the reason why there are none."""


class Objects:
    """Reads objects of at most ``max_bytes`` bytes. A pickled copy has no connections."""

    def __init__(self, max_bytes: int) -> None:
        """Store the limit; connections are made at the first use."""
        self._max_bytes, self._s3 = max_bytes, S3Objects()

    def read(self, fs: AbstractFileSystem, path: str, size_bytes: int | None, etag: str | None = None) -> Fetched:
        """Return the bytes of an object that was listed with ``size_bytes`` and the version tag ``etag``.

        An object of more bytes than allowed gives a rejection. Raises OtherVersionError and OtherLengthError where the
        object is not the listed one; errors of the filesystem pass through.
        """
        found = self._ask(fs, path, size_bytes, etag)
        check_version(found.etag, etag)
        if size_bytes is not None and found.size_bytes != size_bytes:
            raise OtherLengthError(f"{found.size_bytes} bytes arrived, {size_bytes} were listed")
        return self.too_large(found.size_bytes) if found.data is None else found.data

    def _ask(self, fs: AbstractFileSystem, path: str, size_bytes: int | None, etag: str | None) -> ObjectRead:
        if is_local(fs):
            return _read_local(path, self._max_bytes)
        if is_s3(fs):
            return self._s3.get(fs, path, self._max_bytes) or read_s3(fs, path, self._max_bytes)
        if is_http(fs):
            return read_http(fs, path, self._max_bytes)
        if size_bytes is None:
            with fs.open(path, "rb", cache_type="none") as file:
                data = file.read(self._max_bytes + 1)
        else:
            data = read_object(fs, path)
        tag = etag and version_of(fs.info(path)).etag  # It is read after the bytes, so that they are not newer.
        return ObjectRead(tag, len(data), data if len(data) <= self._max_bytes else None)

    def bounded(self, data: bytes) -> Fetched:
        """Return ``data``, or a rejection where it has more bytes than allowed."""
        return self.too_large(len(data)) if len(data) > self._max_bytes else data

    def too_large(self, size_bytes: int) -> RejectedImage:
        """Return the rejection of an object of ``size_bytes`` bytes."""
        detail = f"{size_bytes} bytes, more than the {self._max_bytes} that max_bytes allows"
        return RejectedImage(Reason.TOO_MANY_BYTES, detail)


def read_span(fs: AbstractFileSystem, path: str, start: int, end: int, etag: str | None) -> bytes:
    """Return the bytes from ``start`` up to ``end`` of an object that was listed with the version tag ``etag``.

    The result is shorter where the object ends earlier. Raises OtherVersionError where the store has another version;
    errors of the filesystem pass through.
    """
    if end <= start:
        return b""
    if is_s3(fs) or is_http(fs):
        found = (read_s3 if is_s3(fs) else read_http)(fs, path, end - start, (start, end))
        check_version(found.etag, etag)
        return found.data or b""
    data: bytes = fs.cat_file(path, start=start, end=end)
    if etag:
        check_version(version_of(fs.info(path)).etag, etag)
    return data


def _read_local(path: str, max_bytes: int) -> ObjectRead:
    """Return a regular file, read up to one byte more than ``max_bytes``.

    Raises FileNotFoundError for anything else.
    """
    if "\0" in path:
        raise FileNotFoundError(path)
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # else a pipe would wait for its writer
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(path)
        data = file.read(max_bytes + 1)
    too_large = len(data) > max_bytes
    return ObjectRead(None, max(len(data), status.st_size) if too_large else len(data), None if too_large else data)
