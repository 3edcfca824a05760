"""Fetches the bytes of planned images; what can't be fetched becomes a rejection with its reason."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, groupby, pairwise
from typing import NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fsspec import AbstractFileSystem

from pipeline.storage.filesystems import Stores, is_local, is_s3
from pipeline.storage.inputs.containers import open_parquet
from pipeline.storage.inputs.file_names import PARQUET_SUFFIXES, suffix_of
from pipeline.storage.inputs.object_reader import Fetched, Objects, read_span
from pipeline.storage.inputs.parquet_images import chosen_in, read_rows
from pipeline.storage.inputs.versions import OtherLengthError, OtherVersionError
from pipeline.storage.patience import PATIENCE
from pipeline.storage.store_failures import describe_failure, is_damage, is_denied, is_not_found, is_store_failure
from schemas.errors import RejectedImage, UsageError
from schemas.options.config import StorageConfig
from schemas.reasons import Reason

FETCH_THREADS = 64
"""Requests at once of one read task: at 50 ms each they bring 800 to 1,000 objects a second, where 16 brought 280."""
PART_BYTES = 64 * 2**20
"""Most encoded bytes that are in memory at a time; a slice of large photographs becomes several parts."""
UNKNOWN_BYTES = 4 * 2**20
"""An object of unknown size counts as this many bytes."""
PART_ROWS = 512
"""Most rows of a Parquet file in a part."""
_TRIES = 3
_FIRST_WAIT_S = 0.2
_MERGE_GAP_BYTES = 128 * 2**10
"""Members of a shard with a smaller gap are read by one request: the gap takes less time than another request."""
_MERGED_BYTES = 16 * 2**20
"""Size at which a request takes no more members, so that several requests run at the same time."""
_TRIES_OF_A_CHANGED_OBJECT = 2
"""A store whose servers don't all know the newest version yet may send the listed one at the second try."""
_EXPECTED = (ValueError, IndexError, OtherLengthError, OtherVersionError)
"""Errors that a read raises in addition to a store's failures."""


class _Row(NamedTuple):
    place: int
    """Row of the plan."""
    uri: str
    path: str
    etag: str | None
    size_bytes: int | None
    offset: int | None
    reason_code: str | None
    detail: str | None

    @property
    def parquet(self) -> str | None:
        """Return the Parquet file that holds the image; None where none does."""
        return self.path if self.offset is not None and suffix_of(self.path) in PARQUET_SUFFIXES else None


_Read = Callable[[AbstractFileSystem, list[_Row]], Iterator[tuple[int, Fetched]]]
"""A function that yields place and result of each row and raises at the first failure."""


class Fetcher:
    """Reads planned images from files, shards and Parquet files of any store, many at a time.

    It connects at its first use. A pickled copy has no connections.
    """

    def __init__(self, storage: StorageConfig, max_bytes: int, threads: int = FETCH_THREADS) -> None:
        """Objects of more than ``max_bytes`` are rejected; at most ``threads`` requests run at once."""
        self._stores = Stores(storage, anonymous=storage.anonymous)
        self._max_bytes, self._threads, self._objects = max_bytes, threads, Objects(max_bytes)

    def fetch(self, plan: pa.Table) -> list[Fetched]:
        """Return for each row of the plan the image's bytes or its rejection, in the plan's order.

        A plain object takes one request. Neighbouring members of one shard share a request. Each needed row group of a
        Parquet file is read once. Objects that are listed as larger than allowed are not read.
        """
        rows = _rows_of(plan)
        results: list[Fetched | None] = [self._known_rejection(row) for row in rows]
        work = self._requests([row for row in rows if results[row.place] is None])
        with ThreadPoolExecutor(self._threads, thread_name_prefix="fetch") as pool:
            for found in pool.map(lambda request: dict(request()), work):
                for place, item in found.items():
                    results[place] = item
        return cast(list[Fetched], results)  # every row has a result now

    def fetch_in_parts(
        self,
        plan: pa.Table,
        part_bytes: int = PART_BYTES,
        unknown_bytes: int = UNKNOWN_BYTES,
        part_rows: int = PART_ROWS,
    ) -> Iterator[tuple[pa.Table, list[Fetched]]]:
        """Yield the plan's rows with the results of ``fetch`` for them, in parts of about ``part_bytes`` bytes.

        Rows of a Parquet file are streamed, at most ``part_rows`` in a part, because a slice of them may be long. Other
        objects of unknown size count as ``unknown_bytes``.
        """
        for parquet, stretch in groupby(_rows_of(plan), key=lambda row: row.parquet):
            rows = list(stretch)
            part = plan.slice(rows[0].place, len(rows))
            if parquet is None:
                for each in _by_bytes(part, part_bytes, unknown_bytes):
                    yield each, self.fetch(each)
            else:
                yield from self._stream(part, part_bytes, part_rows)

    def _stream(self, plan: pa.Table, part_bytes: int, part_rows: int) -> Iterator[tuple[pa.Table, list[Fetched]]]:
        """Yield the rows of one Parquet file as soon as they fill a part: its row groups are read once, one by one."""
        rows = _rows_of(plan)
        found: dict[int, Fetched] = {row.place: rejection for row in rows if (rejection := self._known_rejection(row))}
        read = chain.from_iterable(
            request() for request in self._requests([row for row in rows if row.place not in found])
        )
        part: list[Fetched] = []
        held, start = 0, 0
        for row in rows:
            while row.place not in found:
                found.update([next(read)])
            item = found.pop(row.place)
            part.append(item)
            held += len(item) if isinstance(item, bytes) else 0
            if held >= part_bytes or len(part) == part_rows:
                yield plan.slice(start, len(part)), part
                part, held, start = [], 0, start + len(part)
        if part:
            yield plan.slice(start), part

    def _known_rejection(self, row: _Row) -> RejectedImage | None:
        if row.reason_code is not None:
            reason = Reason.of(row.reason_code)
            return RejectedImage(reason, row.detail or reason.meaning)
        if row.size_bytes is not None and row.size_bytes > self._max_bytes:
            return self._objects.too_large(row.size_bytes)
        return None

    def _requests(self, rows: Sequence[_Row]) -> Iterator[Callable[[], Iterator[tuple[int, Fetched]]]]:
        """Yield the calls that read; each call yields the results of one or several rows."""
        containers: defaultdict[str, list[_Row]] = defaultdict(list)
        for row in rows:
            if row.offset is None:
                yield self._request([row], self._read_object)
            else:
                containers[row.path].append(row)
        for inside in containers.values():
            inside.sort(key=lambda row: row.offset or 0)
            if inside[0].parquet:
                yield self._request(inside, self._read_parquet)
            else:
                yield from (self._request(part, _read_members) for part in _merge(inside))

    def _request(self, rows: list[_Row], read: _Read) -> Callable[[], Iterator[tuple[int, Fetched]]]:
        """Return a call that yields a result for each of ``rows``; the connection is made now, in this thread."""
        try:
            fs = self._stores.filesystem(rows[0].uri)
        except UsageError as error:
            rejection = RejectedImage(Reason.FETCH_FAILED, str(error))
            return lambda: ((row.place, rejection) for row in rows)
        return partial(_attempt, fs, rows, read)

    def _read_object(self, fs: AbstractFileSystem, rows: list[_Row]) -> Iterator[tuple[int, Fetched]]:
        (row,) = rows
        yield row.place, self._objects.read(fs, row.path, row.size_bytes, row.etag)

    def _read_parquet(self, fs: AbstractFileSystem, rows: list[_Row]) -> Iterator[tuple[int, Fetched]]:
        place_of = {_start(row): row.place for row in rows}
        with open_parquet(fs, rows[0].path, rows[0].etag) as parquet:
            for number, cell in read_rows(parquet, list(place_of), chosen_in(rows[0].uri, _start(rows[0]))):
                found = RejectedImage(Reason.EMPTY, "the row has no bytes") if cell is None else cell
                yield place_of[number], self._objects.bounded(found) if isinstance(found, bytes) else found


def _rows_of(plan: pa.Table) -> list[_Row]:
    names = ("uri", "path", "etag", "size_bytes", "offset", "reason_code", "detail")
    columns = zip(*(plan[name].to_pylist() for name in names), strict=True)
    return [_Row(place, *values) for place, values in enumerate(columns)]


def _by_bytes(plan: pa.Table, part_bytes: int, unknown_bytes: int) -> Iterator[pa.Table]:
    """Yield the rows in parts of about ``part_bytes``, by their listed sizes."""
    before = np.cumsum(pc.fill_null(plan["size_bytes"], unknown_bytes).to_numpy()) // part_bytes
    starts = np.flatnonzero(np.diff(before, prepend=-1))
    for start, end in pairwise([*starts, len(plan)]):
        yield plan.slice(start, end - start)


def _attempt(fs: AbstractFileSystem, rows: list[_Row], read: _Read) -> Iterator[tuple[int, Fetched]]:
    """Call ``read`` until all rows have a result or no try is left; rows without a result get the last rejection."""
    left = {row.place: row for row in rows}
    attempt = 0
    while left:
        attempt += 1
        try:
            for place, item in read(fs, list(left.values())):
                del left[place]
                yield place, item
        except Exception as error:
            if not (is_store_failure(error) or isinstance(error, _EXPECTED)):
                raise
            rejection, tries = _why(error, fs)
            if attempt >= tries:
                yield from ((place, rejection) for place in left)
                return
            PATIENCE.count_retry()
            time.sleep(_FIRST_WAIT_S * 2 ** (attempt - 1))


def _why(error: Exception, fs: AbstractFileSystem) -> tuple[RejectedImage, int]:
    """Return the rejection for a failed read, and the number of tries after which the rejection is final.

    A local file gets one try; so does S3, because s3fs repeats requests itself. Other stores get a few tries.
    """
    detail = describe_failure(error)
    if isinstance(error, OtherVersionError):
        return RejectedImage(Reason.CHANGED, detail), _TRIES_OF_A_CHANGED_OBJECT
    if isinstance(error, OtherLengthError):
        return RejectedImage(Reason.FETCH_FAILED, detail), 1 if is_local(fs) else _TRIES
    if is_not_found(error):
        return RejectedImage(Reason.NOT_FOUND, detail), 1
    if is_denied(error):
        return RejectedImage(Reason.ACCESS_DENIED, detail), 1
    if is_damage(error) or isinstance(error, IndexError):
        return RejectedImage(Reason.UNREADABLE_CONTAINER, detail), 1
    once = is_local(fs) or is_s3(fs) or isinstance(error, ValueError)
    return RejectedImage(Reason.FETCH_FAILED, detail), 1 if once else _TRIES


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


def _read_members(fs: AbstractFileSystem, rows: list[_Row]) -> Iterator[tuple[int, Fetched]]:
    """Yield the bytes of neighbouring members; raises OtherLengthError at the first member that did not arrive."""
    start = _start(rows[0])
    data = read_span(fs, rows[0].path, start, _end(rows[-1]), rows[0].etag)
    for row in rows:
        part = data[_start(row) - start : _end(row) - start]
        if len(part) != row.size_bytes:
            raise OtherLengthError("the shard changed since it was listed")
        yield row.place, part
