"""Functions for all files that contain rows or images: tar shards, Parquet files, manifests."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipeline.storage.filesystems import is_local
from pipeline.storage.inputs.entries import Container, Entry
from pipeline.storage.inputs.versions import check_version, version_of
from schemas.errors import RejectedImage
from schemas.reasons import Reason

READ_BYTES = 8 * 2**20
"""Bytes of one request of a sequential read, so many that an object store's latency does not matter."""

CONTAINER_THREADS = 16
"""Shards or Parquet files that are listed at once: one connection to S3 brings 50 to 100 MB/s, a machine takes more."""


@contextmanager
def open_parquet(fs: AbstractFileSystem, path: str, etag: str | None = None) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file so that its columns are streamed, not loaded.

    ``store_failures.is_damage`` recognises what is raised for an unsound file. Raises OtherVersionError where the store
    has another version than the one listed as ``etag``.
    """
    with Path(path).open("rb") if is_local(fs) else fs.open(path, "rb", cache_type="none") as file:
        check_version(version_of(getattr(file, "details", None) or {}).etag, etag)
        with pq.ParquetFile(file, buffer_size=READ_BYTES, pre_buffer=False) as parquet:
            yield parquet


def unreadable(container: Container, detail: str) -> Entry:
    """Return the rejected entry for the part of a container that can't be listed."""
    rejected = RejectedImage(Reason.UNREADABLE_CONTAINER, detail)
    return Entry(container.uri, container.path, *container.version, rejected=rejected)
