"""Reads whole objects, wherever they lie, and never many more bytes than allowed."""

import os
import stat

from fsspec import AbstractFileSystem

from pipeline.storage.filesystems import is_local, is_s3, read_object
from pipeline.storage.inputs.s3_objects import S3Objects
from schemas.errors import RejectedImage
from schemas.reasons import Reason

Fetched = bytes | RejectedImage
"""An image's bytes, or why there are none."""


class Objects:
    """Reads whole objects of at most ``max_bytes`` bytes. It travels between processes without connections."""

    def __init__(self, max_bytes: int) -> None:
        """Connect nothing yet."""
        self._max_bytes, self._s3 = max_bytes, S3Objects()

    def read(self, fs: AbstractFileSystem, path: str, size_bytes: int | None) -> Fetched:
        """Return the bytes of an object that was listed with ``size_bytes``; raises what its filesystem raises."""
        if is_local(fs):
            return self.bounded(_read_local(path, self._max_bytes))
        if is_s3(fs) and (answer := self._s3.get(fs, path, self._max_bytes)):
            return self.too_large(answer.size_bytes) if answer.data is None else answer.data
        if size_bytes is None:
            with fs.open(path, "rb", cache_type="none") as file:
                return self.bounded(file.read(self._max_bytes + 1))
        return self.bounded(read_object(fs, path))

    def bounded(self, data: bytes) -> Fetched:
        """Return what was read, or its rejection where that is more than allowed."""
        return self.too_large(len(data)) if len(data) > self._max_bytes else data

    def too_large(self, size_bytes: int) -> RejectedImage:
        """Return the rejection of an object of so many bytes."""
        detail = f"{size_bytes} bytes, more than the {self._max_bytes} that max_bytes allows"
        return RejectedImage(Reason.TOO_MANY_BYTES, detail)


def _read_local(path: str, max_bytes: int) -> bytes:
    """Return a regular file's bytes, at most one more than ``max_bytes``; raises FileNotFoundError for what is none."""
    if "\0" in path:
        raise FileNotFoundError(path)
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # a pipe would wait for its writer
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise FileNotFoundError(path)
        return file.read(max_bytes + 1)
