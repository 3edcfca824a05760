"""Writes the result of a query as CSV, JSON or Parquet, batch by batch, and as cells of a table."""

import base64
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime, time
from pathlib import Path
from typing import IO, Any

import duckdb
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from pipeline.outputs.sql.sql_views import failure_of
from pipeline.storage.filesystems import connect, is_local
from pipeline.storage.store_failures import store_errors
from schemas.errors import UsageError
from schemas.options.config import StorageConfig
from schemas.options.sql import ResultFormat
from schemas.url_secrets import safe_url

BATCH_ROWS = 20_480
_CELL_CHARACTERS = 80
"""Longest text of a cell on the terminal; the rest is shown as one ``…``."""


def write_result(relation: duckdb.DuckDBPyRelation, kind: ResultFormat, sink: IO[bytes]) -> int:
    """Write all rows of ``relation`` to ``sink``; return their number; raises a CamlakeError where the query fails."""
    write = {"csv": _write_csv, "json": _write_json, "parquet": _write_parquet}[kind]
    try:
        return write(relation.to_arrow_reader(BATCH_ROWS), sink)
    except OSError as error:
        if error.errno is not None:  # The place of the result failed: a full disk, a closed pipe.
            raise
        raise failure_of(error) from error  # A query that fails while its rows stream.
    except (duckdb.Error, pa.ArrowException) as error:
        raise failure_of(error) from error


def table_rows(relation: duckdb.DuckDBPyRelation, most: int) -> tuple[list[list[Any]], bool]:
    """Return the first ``most`` rows as values to show, and whether there are more; raises as ``write_result``."""
    try:
        rows = relation.limit(most + 1).fetchall()
    except duckdb.Error as error:
        raise failure_of(error) from error
    return [[_cell(value) for value in row] for row in rows[:most]], len(rows) > most


@contextmanager
def whole_file(url: str, storage: StorageConfig, out: str) -> Iterator[IO[bytes]]:
    """Open a file for writing that appears under ``url`` when the block ends without an error.

    Raises UsageError for a place inside the output ``out``, StoreError where the store refuses.
    """
    (fs, path), (_, root) = connect(url, storage), connect(out, storage)
    if type(fs) is type(connect(out, storage)[0]) and f"{path}/".startswith(f"{root.rstrip('/')}/"):
        raise UsageError(f"--to {safe_url(url)}: lies inside the output, which is only read; allowed: another place")
    folder = Path(path).parent if is_local(fs) else None
    if folder and not folder.is_dir():
        raise UsageError(f"--to {safe_url(url)}: no such folder; allowed: a folder that exists")
    with store_errors(f"{safe_url(url)} can't be written"):
        file = tempfile.NamedTemporaryFile(prefix=".camlake-sql-", dir=folder, delete=False)  # noqa: SIM115
    try:
        with file:
            yield file.file
        with store_errors(f"{safe_url(url)} can't be written"):
            if folder is None:
                fs.put_file(file.name, path)
                return
            mask = os.umask(0)
            os.umask(mask)
            Path(file.name).chmod(0o666 & ~mask)
            Path(file.name).replace(path)
    finally:
        Path(file.name).unlink(missing_ok=True)


def _write_parquet(reader: pa.RecordBatchReader, sink: IO[bytes]) -> int:
    rows = 0
    with pq.ParquetWriter(sink, reader.schema, compression="zstd") as writer:
        for batch in reader:
            writer.write_batch(batch)
            rows += len(batch)
    return rows


def _write_csv(reader: pa.RecordBatchReader, sink: IO[bytes]) -> int:
    """Write CSV; lists, structures and other values that CSV has no form for become JSON texts."""
    schema = pa.schema([one if _is_plain(one.type) else one.with_type(pa.string()) for one in reader.schema])
    rows = 0
    with pcsv.CSVWriter(sink, schema, write_options=pcsv.WriteOptions(quoting_style="needed")) as writer:
        for batch in reader:
            columns = [
                column if _is_plain(column.type) else pa.array(map(_text, column.to_pylist()), pa.string())
                for column in batch.columns
            ]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
            rows += len(batch)
    return rows


def _write_json(reader: pa.RecordBatchReader, sink: IO[bytes]) -> int:
    """Write a JSON list with one object a line; NaN and infinity, which JSON does not have, become null."""
    rows, names = 0, reader.schema.names
    if len(set(names)) < len(names):
        raise UsageError("SQL: two columns have one name; JSON needs a name for each: SELECT ... AS name")
    for batch in reader:
        for row in batch.to_pylist():
            line = json.dumps(_json_value(row), ensure_ascii=False, allow_nan=False)
            sink.write(f"{',' if rows else '['}\n{line}".encode())
            rows += 1
    sink.write(b"\n]\n" if rows else b"[]\n")
    return rows


def _is_plain(kind: pa.DataType) -> bool:
    tests: Sequence[Callable[[pa.DataType], bool]] = (
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_boolean,
        pa.types.is_decimal,
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_date,
        pa.types.is_timestamp,
        pa.types.is_null,
    )
    return any(test(kind) for test in tests)


def _text(value: Any) -> str | None:
    if value is None:
        return None
    plain = _json_value(value)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False, allow_nan=False)


def _json_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _json_value(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(one) for one in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return "" if value is None else value
    plain = _json_value(value)
    text = plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)
    # Control characters in a label must not reach the terminal.
    safe = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    return safe if len(safe) <= _CELL_CHARACTERS else f"{safe[: _CELL_CHARACTERS - 1]}…"
