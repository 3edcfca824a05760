"""Committed Parquet files as DuckDB views, on any fsspec file system.

``all_<table>`` has every committed row of a table, with the partition columns ``model`` and ``date``. ``all_endings``
has the ending of each input in each run: the rows of images and of quarantine together. ``latest`` has for each model
and image the run with the last ending. ``<table>`` and ``endings`` have only the rows of that run; older rows are
hidden.
"""

import io
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import get_ident
from typing import Any

import duckdb
from fsspec import AbstractFileSystem

from pipeline.storage.filesystems import is_local
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.patience import ask_store
from schemas.errors import StoreError
from schemas.runs import DataFile
from schemas.tables import TABLES, Table, TableSpec

PROTOCOL = "camlake"
MEMORY_LIMIT = "1GB"
"""Memory of camlake's own queries; other data is spilled. 24 million images take 18 s with 300 MB on two cores."""

TAIL_BYTES = 16 * 2**10
"""Bytes that hold the footer of an ordinary file, which DuckDB reads in two or three steps."""

THREADS = 4
"""Threads of camlake's own queries; each thread needs a share of MEMORY_LIMIT."""

_READS = 4
"""How often a part of a store's object is read that comes in another length, such as a gateway's page."""

_SOURCE = "model, image_id, run_id, uri, etag, size_bytes, modified_at"

ENDINGS_SQL = f"""
SELECT {_SOURCE}, annotated_at AS decided_at, true AS annotated, true AS permanent, run_id AS rows_of, false AS deleted
FROM {{images}}
UNION ALL
SELECT {_SOURCE}, rejected_at AS decided_at, false AS annotated, permanent,
    CASE WHEN reason_code = 'restored' THEN detail ELSE run_id END AS rows_of, reason_code = 'deleted' AS deleted
FROM {{quarantine}}
"""
"""The ending of each input in each run that ended it. ``permanent``: the ending holds until the input changes.
``rows_of``: the run whose rows count from then on. ``deleted``: whether the input was gone."""

LATEST_SQL = (
    f"SELECT model, image_id, max_by(rows_of, decided_at) AS run_id FROM ({ENDINGS_SQL}) GROUP BY model, image_id"
)
"""The run whose rows of each image count; plain SQL that is the same for DuckDB, Spark, Trino and Athena.

It is the run with the last ending of the image. Where this run restored a deleted image, the older rows count.
"""


class CommittedFiles(AbstractFileSystem):  # type: ignore[misc]  # fsspec is untyped
    """A read-only file system for DuckDB with the committed files of one output, named by their relative paths.

    The sizes of the files come from the commit records, without further requests. ``*`` and ``[`` in a name have no
    special meaning.
    """

    protocol = PROTOCOL
    cachable = False

    def __init__(self, store: AbstractFileSystem, layout: LakePaths, files: Sequence[DataFile]) -> None:
        """Show ``files``, which lie in ``store`` under ``layout``."""
        super().__init__()
        self._store, self._layout = store, layout
        self._sizes = {file.path: file.size_bytes for file in files}

    def glob(self, path: str, **_: Any) -> list[str]:
        """Return the file of exactly that name, or nothing."""
        name = self._strip_protocol(path)
        return [name] if name in self._sizes else []

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Return name, size and type; raises FileNotFoundError for a file that is not committed."""
        name = self._strip_protocol(path)
        if name not in self._sizes:
            raise FileNotFoundError(path)
        return {"name": name, "size": self._sizes[name], "type": "file"}

    def modified(self, path: str) -> datetime:
        """Return the same moment for every file: committed files never change."""
        return datetime(2000, 1, 1, tzinfo=UTC)

    def open(self, path: str, mode: str = "rb", **_: Any) -> io.RawIOBase:
        """Return the file for reading; raises PermissionError for any other mode."""
        if mode != "rb":
            raise PermissionError(f"{path}: committed files are read-only")
        name = self._strip_protocol(path)
        return _RangeFile(self._store, self._layout.full(name), self.info(name)["size"])


class _RangeFile(io.RawIOBase):
    """A file of a known size. Each read is one ranged request, and the last TAIL_BYTES are requested only once.

    DuckDB seeks and reads on one handle from several threads at the same time, so each thread has its own position.
    """

    def __init__(self, store: AbstractFileSystem, path: str, size: int) -> None:
        super().__init__()
        self._store, self._path, self._size = store, path, size
        self._positions: dict[int, int] = {}
        self._tail = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._positions.get(get_ident(), 0)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self._size}[whence]
        self._positions[get_ident()] = at
        return at

    def read(self, size: int = -1) -> bytes:
        at = self.tell()
        end = self._size if size < 0 else min(at + size, self._size)
        tail_start = max(0, self._size - TAIL_BYTES)
        if end <= at:
            data = b""
        elif at >= tail_start:
            self._tail = self._tail or self._fetch(tail_start, self._size)
            data = self._tail[at - tail_start : end - tail_start]
        else:
            data = self._fetch(at, end)
        self.seek(at + len(data))
        return data

    def _fetch(self, start: int, end: int) -> bytes:
        return ask_store(f"{self._path} can't be read", lambda: self._bytes(start, end))

    def _bytes(self, start: int, end: int) -> bytes:
        data = b""
        for _ in range(1 if is_local(self._store) else _READS):
            data = bytes(self._store.cat_file(self._path, start=start, end=end))
            if len(data) == end - start:
                break
        return data


def quote(text: str) -> str:
    """Return ``text`` as an SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def quote_list(texts: Sequence[str]) -> str:
    """Return ``texts`` as an SQL list of string literals."""
    return f"[{', '.join(map(quote, texts))}]"


def has_version(listed: str) -> str:
    """Return an SQL condition: whether the listing knows the version of an input, a row of PLAN."""
    known = (f"{listed}.{column} IS NOT NULL" for column in ("etag", "size_bytes", "modified_at"))
    return f"({' OR '.join(known)})"


def same_version(listed: str, done: str) -> str:
    """Return an SQL condition: whether a listed input, a row of PLAN, has the same version as in the table ``done``.

    Where both have an etag, the etags are compared, else sizes and times. A version without etag, size and time is
    never the same, unless the listing itself rejected the input.
    """
    known = f"{listed}.size_bytes IS NOT NULL OR {listed}.modified_at IS NOT NULL"
    return (
        f"CASE WHEN {listed}.etag IS NOT NULL AND {done}.etag IS NOT NULL THEN {listed}.etag = {done}.etag"
        f" ELSE ({known} OR {listed}.reason_code IS NOT NULL)"
        f" AND {listed}.size_bytes IS NOT DISTINCT FROM {done}.size_bytes"
        f" AND {listed}.modified_at IS NOT DISTINCT FROM {done}.modified_at END"
    )


def connect_duckdb(memory_limit: str | None = MEMORY_LIMIT) -> duckdb.DuckDBPyConnection:
    """Return an in-memory DuckDB in UTC that spills to its own folder; None leaves DuckDB its default memory limit."""
    config: dict[str, Any] = {
        "temp_directory": str(Path(tempfile.gettempdir()) / f"camlake-{uuid.uuid4().hex}"),
        "preserve_insertion_order": False,
    }
    if memory_limit is not None:
        config |= {"memory_limit": memory_limit, "threads": min(THREADS, os.cpu_count() or 1)}
    con = duckdb.connect(config=config)
    con.execute("SET TimeZone = 'UTC'")
    con.execute("SET parquet_metadata_cache = true")
    return con


@contextmanager
def committed_views(
    fs: AbstractFileSystem, root: str, files: Sequence[DataFile]
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a DuckDB of bounded memory with this module's views of ``files``.

    A query that fails inside the block becomes a StoreError.
    """
    with closing(connect_duckdb()) as con, damage_said(root):
        yield add_views(con, fs, root, files)


@contextmanager
def damage_said(where: str) -> Iterator[None]:
    """Turn the failure of one of camlake's own queries inside the block into a StoreError for the output ``where``."""
    try:
        yield
    except duckdb.Error as error:
        lines = str(error).strip().splitlines()
        line = lines[-1] if lines[0].startswith("Traceback") else lines[0]
        lacks_memory = isinstance(error, duckdb.OutOfMemoryException)
        hint = "" if lacks_memory else " (`camlake verify` says what is damaged, `--repair` mends it)"
        raise StoreError(f"{where} can't be read: {line}{hint}") from error


def add_views(
    con: duckdb.DuckDBPyConnection, fs: AbstractFileSystem, root: str, files: Sequence[DataFile]
) -> duckdb.DuckDBPyConnection:
    """Create this module's views of ``files`` and return ``con``; the view of a table without files is empty.

    Raises StoreError for a file name that points outside the output, and for a file that is missing or damaged.
    """
    if not _readable_by_path(fs, root):
        con.register_filesystem(CommittedFiles(fs, LakePaths(root), files))
    with damage_said(root):
        for table, spec in TABLES.items():
            con.execute(f"CREATE VIEW all_{table} AS {_all_rows(con, spec, file_urls(fs, root, files, table))}")
    sources = {"images": "all_images", "quarantine": "all_quarantine"}
    con.execute(f"CREATE VIEW all_endings AS {ENDINGS_SQL.format(**sources)}")
    con.execute(f"CREATE VIEW latest AS {LATEST_SQL.format(**sources)}")
    for view in (*TABLES, "endings"):
        con.execute(f"CREATE VIEW {view} AS SELECT * FROM all_{view} SEMI JOIN latest USING (model, image_id, run_id)")
    return con


def file_urls(fs: AbstractFileSystem, root: str, files: Sequence[DataFile], table: str) -> list[str]:
    """Return the names by which DuckDB opens the files of one table: local paths, or names in CommittedFiles."""
    layout = LakePaths(root)
    paths = [file.path for file in files if file.table == table]
    by_path = _readable_by_path(fs, root)
    return [layout.full(path) if by_path else f"{PROTOCOL}://{path}" for path in paths]


def files_with(con: duckdb.DuckDBPyConnection, urls: Iterable[str], rows: str) -> list[str]:
    """Return those of the files ``urls``, named by ``file_urls``, that have images and runs of the table ``rows``."""
    names = list(urls)
    if not names:
        return []
    files = f"read_parquet({quote_list(names)}, filename = true, hive_partitioning = false)"
    query = f"SELECT DISTINCT filename FROM {files} SEMI JOIN {rows} USING (run_id, image_id)"
    return [url for (url,) in con.sql(query).fetchall()]


def _readable_by_path(fs: AbstractFileSystem, root: str) -> bool:
    """Return whether DuckDB opens the files itself: they are local, and no folder above looks like a partition."""
    return is_local(fs) and "=" not in root


def column_names(table: Table) -> list[str]:
    """Return the columns of a table's view: those of the table, then those of the partition."""
    return [*TABLES[table].columns.names, "model", "date"]


def _all_rows(con: duckdb.DuckDBPyConnection, spec: TableSpec, urls: Sequence[str]) -> str:
    if not urls:
        empty = con.from_arrow(spec.columns.empty_table())
        columns = [f"NULL::{kind} AS {name}" for name, kind in zip(empty.columns, empty.types, strict=True)]
        return f"SELECT {', '.join(columns)}, NULL::VARCHAR AS model, NULL::DATE AS date WHERE false"
    return (
        f"SELECT {', '.join(column_names(spec.name))} FROM read_parquet({quote_list(urls)}, "
        "hive_partitioning = true, hive_types = {'model': VARCHAR, 'date': DATE})"
    )
