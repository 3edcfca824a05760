"""Fetches the bytes of planned images; what can't be fetched becomes a rejection with its reason."""

import os
import stat
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, cast

import pyarrow as pa
from fsspec import AbstractFileSystem

from pipeline.storage.containers import is_damage, open_parquet, read_rows, suffix_of
from pipeline.storage.filesystems import Stores, describe_failure, is_local, is_s3, is_store_failure, store_errors
from pipeline.storage.planning import PlanSlice
from schemas.config import StorageConfig
from schemas.errors import RejectedImage, UsageError
from schemas.reasons import Reason
from schemas.tables import PLAN

_TRIES = 3
_FIRST_WAIT_S = 0.2
_MERGE_GAP_BYTES = 128 * 2**10
"""Members of a shard that lie closer than this are read in one request: cheaper than another one's latency."""
_MERGED_BYTES = 16 * 2**20
"""Size at which a request takes no more members, so that several run side by side."""
_REASONS = {str(reason): reason for reason in Reason}

Fetched = bytes | RejectedImage


class _Row(NamedTuple):
    place: int
    """Row of the plan."""
    uri: str
    path: str
    size_bytes: int | None
    offset: int | None
    reason_code: str | None
    detail: str | None


def read_plan_slice(fs: AbstractFileSystem, root: str, one: PlanSlice) -> pa.Table:
    """Return the planned inputs of a slice, of the schema PLAN; raises StoreError where the plan can't be read."""
    path = f"{root.rstrip('/')}/{one.file}"
    with store_errors(f"can't read the plan {path}"), open_parquet(fs, path) as parquet:
        return parquet.read_row_group(one.row_group).cast(PLAN)


class Fetcher:
    """Reads planned images from wherever they lie, many at a time.

    It connects where it is first used and travels between processes without connections.
    """

    def __init__(self, storage: StorageConfig, max_bytes: int, threads: int = 16) -> None:
        """Objects of more than ``max_bytes`` are rejected; at most ``threads`` requests run at once."""
        self._stores = Stores(storage, anonymous=storage.anonymous)
        self._max_bytes, self._threads = max_bytes, threads

    def fetch(self, plan: pa.Table) -> list[Fetched]:
        """Return for each row of the plan its image's bytes or why there are none, in the plan's order.

        A plain object is one request; members of one shard that lie side by side share one; of a Parquet file each
        row group that is needed is read once. Objects listed as larger than allowed are not read.
        """
        names = ("uri", "path", "size_bytes", "offset", "reason_code", "detail")
        columns = zip(*(plan[name].to_pylist() for name in names), strict=True)
        rows = [_Row(index, *values) for index, values in enumerate(columns)]
        results: list[Fetched | None] = [self._known_rejection(row) for row in rows]
        work = self._requests([row for row in rows if results[row.place] is None])
        with ThreadPoolExecutor(self._threads, thread_name_prefix="fetch") as pool:
            for found in pool.map(lambda request: request(), work):
                for index, item in found.items():
                    results[index] = self._bounded(item)
        return cast(list[Fetched], results)  # every row has its own by now

    def _known_rejection(self, row: _Row) -> RejectedImage | None:
        if row.reason_code is not None:
            return RejectedImage(_REASONS[row.reason_code], row.detail or _REASONS[row.reason_code].meaning)
        if row.size_bytes is not None and row.size_bytes > self._max_bytes:
            return self._too_large(row.size_bytes)
        return None

    def _too_large(self, size_bytes: int) -> RejectedImage:
        detail = f"{size_bytes} bytes, more than the {self._max_bytes} that max_bytes allows"
        return RejectedImage(Reason.TOO_MANY_BYTES, detail)

    def _bounded(self, item: Fetched) -> Fetched:
        return self._too_large(len(item)) if isinstance(item, bytes) and len(item) > self._max_bytes else item

    def _requests(self, rows: Sequence[_Row]) -> Iterator[Callable[[], dict[int, Fetched]]]:
        """Yield the reads to do, each of which gives the results of one or several rows."""
        containers: defaultdict[str, list[_Row]] = defaultdict(list)
        for row in rows:
            if row.offset is None:
                yield self._request([row], self._read_object)
            else:
                containers[row.path].append(row)
        for path, inside in containers.items():
            inside.sort(key=lambda row: row.offset or 0)
            if suffix_of(path) == ".parquet":
                yield self._request(inside, _read_parquet)
            else:
                yield from (self._request(part, _read_members) for part in _merge(inside))

    def _request(
        self, rows: list[_Row], read: Callable[[AbstractFileSystem, list[_Row], dict[int, Fetched]], None]
    ) -> Callable[[], dict[int, Fetched]]:
        """Return a call that gives a result for each of ``rows``; the store is connected here, by the caller."""
        try:
            fs = self._stores.filesystem(rows[0].uri)
        except UsageError as error:
            rejection = RejectedImage(Reason.FETCH_FAILED, str(error))
            return lambda: dict.fromkeys((row.place for row in rows), rejection)
        return partial(_attempt, fs, rows, read)

    def _read_object(self, fs: AbstractFileSystem, rows: list[_Row], found: dict[int, Fetched]) -> None:
        (row,) = rows
        if is_local(fs):
            found[row.place] = _read_local(row.path, self._max_bytes)
        elif row.size_bytes is None:
            with fs.open(row.path, "rb", cache_type="none") as file:
                found[row.place] = file.read(self._max_bytes + 1)
        else:
            # s3fs would ask for the size first, to split what is large.
            found[row.place] = fs.cat_file(row.path, max_concurrency=1) if is_s3(fs) else fs.cat_file(row.path)


def _attempt(
    fs: AbstractFileSystem,
    rows: list[_Row],
    read: Callable[[AbstractFileSystem, list[_Row], dict[int, Fetched]], None],
) -> dict[int, Fetched]:
    """Let ``read`` fill in results until all rows have one; what is then left gets the reason of the failure.

    Local files fail for good, and s3fs tries again by itself; other stores get a few tries here.
    """
    tries = 1 if is_local(fs) or is_s3(fs) else _TRIES
    found: dict[int, Fetched] = {}
    for attempt in range(tries):
        try:
            read(fs, [row for row in rows if row.place not in found], found)
            break
        except Exception as error:
            if not (is_store_failure(error) or isinstance(error, ValueError | IndexError)):
                raise
            rejection, again = _why(error)
            if not again or attempt + 1 == tries:
                return dict.fromkeys((row.place for row in rows), rejection) | found
            time.sleep(_FIRST_WAIT_S * 2**attempt)
    return found


def _why(error: Exception) -> tuple[RejectedImage, bool]:
    """Return the rejection that a failed read means, and whether another try may help."""
    detail = describe_failure(error)
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError) or status in (404, 410):
        return RejectedImage(Reason.NOT_FOUND, detail), False
    if isinstance(error, PermissionError) or status in (401, 403) or type(error).__name__ == "NoCredentialsError":
        return RejectedImage(Reason.ACCESS_DENIED, detail), False
    if is_damage(error) or isinstance(error, IndexError):
        return RejectedImage(Reason.UNREADABLE_CONTAINER, detail), False
    return RejectedImage(Reason.FETCH_FAILED, detail), not isinstance(error, ValueError)


def _read_local(path: str, max_bytes: int) -> bytes:
    """Return a regular file's bytes, at most one more than ``max_bytes``; raises FileNotFoundError for what is none."""
    if "\0" in path:
        raise FileNotFoundError(path)
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # a pipe would wait for its writer
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise FileNotFoundError(path)
        return file.read(max_bytes + 1)


def _merge(rows: Sequence[_Row]) -> Iterator[list[_Row]]:
    """Yield the members of a shard, sorted by offset, in groups that one request reads."""
    group: list[_Row] = []
    for row in rows:
        if group and (_end(row) - _start(group[0]) > _MERGED_BYTES or _start(row) - _end(group[-1]) > _MERGE_GAP_BYTES):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _start(row: _Row) -> int:
    return row.offset or 0


def _end(row: _Row) -> int:
    return _start(row) + (row.size_bytes or 0)


def _read_members(fs: AbstractFileSystem, rows: list[_Row], found: dict[int, Fetched]) -> None:
    start, end = _start(rows[0]), _end(rows[-1])
    data = fs.cat_file(rows[0].path, start=start, end=end) if end > start else b""
    for row in rows:
        part = data[_start(row) - start : _end(row) - start]
        short = len(part) != row.size_bytes
        found[row.place] = (
            RejectedImage(Reason.FETCH_FAILED, "the shard changed since it was listed") if short else part
        )


def _read_parquet(fs: AbstractFileSystem, rows: list[_Row], found: dict[int, Fetched]) -> None:
    index_of = {_start(row): row.place for row in rows}
    with open_parquet(fs, rows[0].path) as parquet:
        for number, data in read_rows(parquet, list(index_of)):
            found[index_of[number]] = RejectedImage(Reason.EMPTY, "the row has no bytes") if data is None else data
