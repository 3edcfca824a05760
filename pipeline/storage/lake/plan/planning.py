"""Plans a run: selects the listed inputs that are not done yet, and divides them into slices for the readers.

DuckDB does the work in a temporary database that spills to disk, so memory does not grow with the number of images.
"""

import io
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from numpy.typing import NDArray

from pipeline.storage.inputs.listing import Listing
from pipeline.storage.lake.encoding import in_row_groups
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.plan.tombstones import compare_output, write_tombstones
from pipeline.storage.lake.query import same_version
from pipeline.storage.lake.whole_objects import read_whole, write_whole
from pipeline.storage.prefetch import map_ahead
from pipeline.storage.truth.class_join import ClassTable, append_rows, join_classes
from schemas.errors import InputError, StoreError
from schemas.reasons import Reason
from schemas.runs import Counts
from schemas.tables import PLAN
from schemas.url_secrets import safe_path

DONE_COLUMNS = ("image_id", "etag", "size_bytes", "modified_at")
SLICES_PER_FILE = 16
"""Slices in a file of the plan. A reader reads the file by one request: 1 % of the bytes of one slice's images."""
MAX_CHUNK_ROWS = 2_048
"""Longest row group that stays in one slice. Each slice of a longer row group also reads the rows before its rows."""
_WRITE_THREADS = 4
_MEMORY_LIMIT = "256MB"
"""Memory of DuckDB's buffers; other data spills to disk."""
_READ_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class PlanSlice:
    """The planned inputs of one read task: a row group of one of the plan's files."""

    file: str
    """Path of the file relative to the output's root, with ``/``."""
    row_group: int
    rows: int
    has_secrets: bool = False
    """Whether some paths of the slice have secrets, which are in a file that is removed when the run ends."""


@dataclass(frozen=True)
class Plan:
    """The plan of a run."""

    slices: tuple[PlanSlice, ...]
    counts: Counts
    """The counts, without those that only the run itself can give: annotated, rejected, boxes."""
    with_classes: int
    """Number of planned inputs that have classes in ``classes``."""
    tombstones: tuple[str, ...] = ()
    """The plan's files, relative to the output, of images to hide and of hidden images to show again."""
    left_out_of_classes: str = ""
    """One line on the annotations of ``--classes`` that can't be used; empty where there are none."""

    @property
    def to_do(self) -> int:
        """Return the number of inputs that are to be annotated."""
        return sum(one.rows for one in self.slices)


def make_plan(
    listing: Listing,
    done: Iterable[pa.RecordBatch],
    fs: AbstractFileSystem,
    root: str,
    plan_dir: str,
    *,
    rows_per_slice: int | Callable[[int], int],
    limit: int | None = None,
    sample: float = 1.0,
    classes: ClassTable | None = None,
    in_output: Iterable[pa.RecordBatch] = (),
    hide_deleted: bool = False,
) -> Plan:
    """Write the inputs that are not done to ``<root>/<plan_dir>/`` as Parquet of the schema PLAN, and return the plan.

    The plan stays in the output and has no secrets. Paths with signatures or passwords in them, which readers need, go
    to ``LakePaths.secrets_dir``.
    Inputs keep the listing's order (a folder's inputs are sorted by path), so that containers are read from front to
    back. Of inputs with the same id the first counts; of members of shards the last. ``sample`` keeps a share of the
    inputs by their ids, always the same inputs. ``limit`` then keeps this number of first inputs, done or not, so that
    a second run with the same limit has no work. ``done`` has DONE_COLUMNS of the latest committed version of each
    image. An input is done where both have the same etag, or where an etag is missing and size and time are equal;
    without etag, size and time it is never done. ``rows_per_slice`` may depend on the number of planned inputs.
    ``in_output`` is the result of ``images_in_scope``. Its images that are not listed are counted, unless ``limit`` or
    ``sample`` leaves inputs out; ``hide_deleted`` hides them. Hidden images that are listed again are shown again.

    Raises InputError where the listing fails, StoreError where the plan can't be written.
    """
    with _database() as con:
        _load_listing(con, listing)
        _load_done(con, done)
        listed, firsts, considered = _consider(con, listing, limit, sample)
        missing, restored = compare_output(con, in_output, listed_whole=limit is None and sample >= 1)
        hidden = missing if hide_deleted else 0
        planned = _subtract_done(con)
        join_classes(con, classes)
        slices: tuple[PlanSlice, ...] = ()
        if planned:
            rows = rows_per_slice(planned) if callable(rows_per_slice) else rows_per_slice
            slices = tuple(_write_slices(con, fs, root, plan_dir, rows, listing.chunk_starts))
        tombstones = tuple(write_tombstones(con, fs, root, plan_dir, deleted=hide_deleted))
        named = _number(con, "SELECT count(classes) FROM planned LEFT JOIN named USING (seq)")
    counts = Counts(
        listed=firsts,
        duplicates=listed - firsts,
        skipped_files=listing.skipped_files,
        skipped_by_kind=dict(listing.skipped_kinds.most_common()),
        left_out=firsts - considered,
        already_done=considered - planned - restored,
        planned=planned + hidden + restored,
        missing=missing,
        hidden=hidden,
        restored=restored,
    )
    return Plan(slices, counts, named, tombstones)


def read_plan_slice(fs: AbstractFileSystem, root: str, one: PlanSlice) -> pa.Table:
    """Return the planned inputs of a slice, of the schema PLAN; raises StoreError where the plan can't be read.

    The file is read whole, by one request: by footer, row group and columns it would be a dozen, one after the other.
    """
    paths = LakePaths(root)
    plan = _read_slice(fs, paths.full(one.file), one.row_group).cast(PLAN)
    if not one.has_secrets:
        return plan
    whole = _read_slice(fs, paths.full(paths.secrets_path(one.file)), one.row_group)["path"]
    return plan.set_column(PLAN.get_field_index("path"), PLAN.field("path"), whole)


def _read_slice(fs: AbstractFileSystem, path: str, row_group: int) -> pa.Table:
    data = read_whole(fs, path)
    if data is None:
        raise StoreError(f"can't read the plan {path}: not found")
    return pq.ParquetFile(io.BytesIO(data)).read_row_group(row_group)


@contextmanager
def _database() -> Iterator[duckdb.DuckDBPyConnection]:
    with tempfile.TemporaryDirectory(prefix="camlake-plan-") as folder:
        config: dict[str, str | bool | int | float | list[str]] = {"memory_limit": _MEMORY_LIMIT, "threads": 2}
        config["temp_directory"] = folder
        with duckdb.connect(str(Path(folder) / "plan.duckdb"), config=config) as con:
            try:
                yield con
            except duckdb.OperationalError as error:
                reason = str(error).splitlines()[0]
                raise StoreError(f"planning failed in {tempfile.gettempdir()} (TMPDIR): {reason}") from error


def _number(con: duckdb.DuckDBPyConnection, query: str) -> int:
    return int(con.execute(query).fetchall()[0][0])


def _load_listing(con: duckdb.DuckDBPyConnection, listing: Listing) -> None:
    con.execute(
        "CREATE TABLE listed (seq BIGINT, image_id VARCHAR, uri VARCHAR, etag VARCHAR, size_bytes BIGINT,"
        ' modified_at BIGINT, path VARCHAR, "offset" BIGINT, reason_code VARCHAR, detail VARCHAR)'
    )
    start = 0
    for batch in listing.batches:
        table = _plain_times(pa.table(batch).drop_columns(["classes"]))
        numbered = table.add_column(0, "seq", pa.array(range(start, start + len(table)), pa.int64()))
        append_rows(con, "listed", numbered)
        start += len(table)


def _load_done(con: duckdb.DuckDBPyConnection, done: Iterable[pa.RecordBatch]) -> None:
    con.execute("CREATE TABLE done (image_id VARCHAR, etag VARCHAR, size_bytes BIGINT, modified_at BIGINT)")
    for batch in done:
        append_rows(con, "done", _plain_times(pa.table(batch).select(DONE_COLUMNS)))


def _plain_times(table: pa.Table) -> pa.Table:
    """Return the table with ``modified_at`` as microseconds: DuckDB's time zones would only be in the way."""
    index = table.schema.get_field_index("modified_at")
    micros = table["modified_at"].cast(pa.timestamp("us", "UTC")).cast(pa.int64())
    return table.set_column(index, "modified_at", micros)


def _consider(
    con: duckdb.DuckDBPyConnection, listing: Listing, limit: int | None, sample: float
) -> tuple[int, int, int]:
    """Make ``considered``; return how many inputs were listed, how many of them differ, and how many are considered."""
    order = "seq" if listing.ordered else "path, seq"
    # A member that is in a shard twice was written again: its last version counts, as for tar itself.
    seq = 'coalesce(max(seq) FILTER (WHERE "offset" IS NOT NULL), min(seq))'
    con.execute(f"CREATE TABLE firsts AS SELECT {seq} AS seq FROM listed GROUP BY image_id")
    # Ids are uniform: for this share of all images the first 16 hex digits, which sort like numbers, are below a limit.
    kept = "" if sample >= 1 else f"WHERE image_id < '{int(sample * 2**64):016x}'"
    most = "" if limit is None else f"ORDER BY {order} LIMIT {int(limit)}"
    con.execute(
        f"CREATE TABLE considered AS SELECT row_number() OVER (ORDER BY {order}) AS place, * FROM"
        f" (SELECT listed.* FROM listed SEMI JOIN firsts USING (seq) {kept} {most})"
    )
    if listing.has_own_ids:
        _check_own_ids(con)
    tables = ("listed", "firsts", "considered")
    listed, firsts, considered = (_number(con, f"SELECT count(*) FROM {name}") for name in tables)
    return listed, firsts, considered


def _check_own_ids(con: duckdb.DuckDBPyConnection) -> None:
    """Raise InputError where the user gave one id to two images: one of them would be lost."""
    query = "SELECT min(uri), max(uri) FROM listed GROUP BY image_id HAVING min(uri) <> max(uri) LIMIT 1"
    if shared := con.execute(query).fetchone():
        raise InputError(
            f"--id-column: {shared[0]} and {shared[1]} have one id; allowed: an id of its own for each image"
        )


def _subtract_done(con: duckdb.DuckDBPyConnection) -> int:
    """Make ``planned`` of the inputs that are not done and not to be shown again; return how many there are."""
    con.execute(
        "CREATE TABLE same AS SELECT seq FROM considered JOIN done USING (image_id)"
        f" WHERE {same_version('considered', 'done')} UNION ALL"
        f" SELECT seq FROM considered SEMI JOIN (FROM tombstones WHERE reason_code = '{Reason.RESTORED}')"
        " USING (image_id)"
    )
    con.execute("CREATE TABLE planned AS SELECT * FROM considered ANTI JOIN same USING (seq)")
    return _number(con, "SELECT count(*) FROM planned")


def _write_slices(
    con: duckdb.DuckDBPyConnection, fs: AbstractFileSystem, root: str, plan_dir: str, rows: int, starts: "array[int]"
) -> Iterator[PlanSlice]:
    columns = ", ".join("classes" if name == "classes" else f'planned."{name}"' for name in PLAN.names)
    found = con.sql(f"SELECT seq, {columns} FROM planned LEFT JOIN named USING (seq) ORDER BY place")
    slices = _in_slices(found.to_arrow_reader(_READ_ROWS), rows, np.frombuffer(starts, np.int64))
    groups = enumerate(iter(lambda: list(islice(slices, SLICES_PER_FILE)), []))

    def write(numbered: tuple[int, list[pa.Table]]) -> list[PlanSlice]:
        index, whole = numbered
        file, paths = f"{plan_dir}/part-{index:05d}.parquet", LakePaths(root)
        group = [_without_secrets(table) for table in whole]
        has_secrets = any(public is not table for public, table in zip(group, whole, strict=True))
        if has_secrets:
            secrets = [table.select(["path"]) for table in whole]
            write_whole(fs, paths.full(paths.secrets_path(file)), in_row_groups(secrets))
        write_whole(fs, paths.full(file), in_row_groups(group))
        return [PlanSlice(file, number, len(table), has_secrets) for number, table in enumerate(group)]

    return chain.from_iterable(map_ahead(write, groups, _WRITE_THREADS))


def _without_secrets(table: pa.Table) -> pa.Table:
    """Return planned inputs with the secrets taken out of their paths; the same table where there are none."""
    if not pc.any(pc.match_substring_regex(table["path"], "[?@#;]")).as_py():
        return table
    paths = table["path"].to_pylist()
    public = [safe_path(path) for path in paths]
    if public == paths:
        return table
    return table.set_column(PLAN.get_field_index("path"), PLAN.field("path"), pa.array(public, pa.string()))


def _in_slices(batches: Iterable[pa.RecordBatch], rows: int, chunk_starts: NDArray[np.int64]) -> Iterator[pa.Table]:
    """Yield the same rows, without ``seq``, in tables of ``rows`` each, the last one shorter.

    A table is longer where it would otherwise end inside a chunk of at most MAX_CHUNK_ROWS rows.
    """
    waiting = pa.schema([pa.field("seq", pa.int64()), *PLAN]).empty_table()
    most = max(rows, MAX_CHUNK_ROWS) if len(chunk_starts) else rows
    for batch in chain(batches, [None]):
        if batch is not None:
            waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch]).cast(waiting.schema)])
        while len(waiting) > (0 if batch is None else most):
            end = _end_of_chunk(waiting["seq"].to_numpy(), rows, most, chunk_starts)
            yield waiting.slice(0, end).drop_columns("seq")
            waiting = waiting.slice(end)


def _end_of_chunk(seq: NDArray[np.int64], rows: int, most: int, chunk_starts: NDArray[np.int64]) -> int:
    """Return how many rows to take: at least ``rows``, then up to the end of a chunk, at most ``most``."""
    if rows >= len(seq) or not len(chunk_starts):
        return min(rows, len(seq))
    chunk = np.searchsorted(chunk_starts, seq[rows - 1 : most + 1], side="right")
    ends = np.flatnonzero(chunk != chunk[0])
    return rows - 1 + int(ends[0]) if len(ends) else min(most, len(seq))
