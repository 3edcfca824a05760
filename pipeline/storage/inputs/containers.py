"""What all files that hold rows or images have in common: tar shards, Parquet files, manifests."""

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipeline.storage.filesystems import is_local
from pipeline.storage.inputs.entries import Container, Entry
from schemas.reasons import Reason

READ_BYTES = 8 * 2**20
"""One request of a sequential read: large enough that an object store's latency does not matter."""

CONTAINER_THREADS = 16
"""Shards or Parquet files that are listed at once: one connection to S3 brings 50 to 100 MB/s, a machine takes more."""


def suffix_of(path: str) -> str:
    """Return the last extension of a path with its dot, in lower case; empty where there is none."""
    return posixpath.splitext(path)[1].lower()


@contextmanager
def open_parquet(fs: AbstractFileSystem, path: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file so that its columns are streamed, not loaded; ``is_damage`` knows an unsound one's errors."""
    with (
        Path(path).open("rb") if is_local(fs) else fs.open(path, "rb", cache_type="none") as file,
        pq.ParquetFile(file, buffer_size=READ_BYTES, pre_buffer=False) as parquet,
    ):
        yield parquet


def is_damage(error: BaseException) -> bool:
    """Tell whether pyarrow failed because of a file's content: by ArrowInvalid, or an OSError without a number."""
    return isinstance(error, pa.ArrowException) or (type(error) is OSError and error.errno is None)


def unreadable(container: Container, detail: str) -> Entry:
    """Return the entry that stands for what can't be listed of a container."""
    return Entry(container.uri, container.path, *container.version, reason=Reason.UNREADABLE_CONTAINER, detail=detail)
