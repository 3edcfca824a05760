"""The statements that make the tables of an output, and views of their current rows, in other engines.

``all_<table>`` has every row of the files, ``<table>`` the current rows of one model. Maps are lists of uint8, a type
that Spark, Trino, Athena and Delta don't have: they read the values, 0 to 255, as wider integers.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import pyarrow as pa

from pipeline.outputs.reader import ALL_MODELS, CURRENT_ROWS_SQL, open_lake
from pipeline.outputs.sql.sql_views import chosen_model
from pipeline.storage.filesystems import canonical_url
from pipeline.storage.lake.query import quote
from schemas.errors import UsageError
from schemas.options.sql import Engine, SqlConfig
from schemas.tables import TABLES, TableSpec
from schemas.url_secrets import safe_url

_TYPES: dict[pa.DataType, tuple[str, str]] = {
    pa.string(): ("string", "varchar"),
    pa.int32(): ("int", "integer"),
    pa.int64(): ("bigint", "bigint"),
    pa.float32(): ("float", "real"),
    pa.bool_(): ("boolean", "boolean"),
    pa.timestamp("us", "UTC"): ("timestamp", "timestamp(3)"),
    pa.large_binary(): ("binary", "varbinary"),
    pa.list_(pa.uint8()): ("array<int>", "array(integer)"),
    pa.list_(pa.float32()): ("array<float>", "array(real)"),
}
"""The names of the columns' types for Athena, which are Hive's, and for Trino."""


class _Dialect(NamedTuple):
    """How an engine is told of files and of views."""

    tables: Callable[[TableSpec, str], Iterator[str]]
    """Yields the statements that make ``all_<table>`` of the folder of a table."""
    view: str
    """The beginning of the statement that makes a view."""
    protocols: Mapping[str, str] = {}
    """Protocols that the engine calls by another name."""


def statements(config: SqlConfig, engine: Engine) -> Iterator[str]:
    """Yield the statements for ``engine``, each ended by a semicolon, after a comment.

    Raises StoreError where there is no output, UsageError where its model must be named, and for ``athena`` where the
    output is not on S3.
    """
    dialect, url = _DIALECTS[engine], canonical_url(config.out).rstrip("/")
    if engine == "athena" and not url.startswith("s3://"):
        raise UsageError(f"--ddl athena: Athena reads s3:// only; allowed: another engine for {safe_url(config.out)}")
    with open_lake(config.out, config) as lake:
        model = chosen_model(lake, config.out, config.model)
        files = {file.table for run in lake.runs if model in (ALL_MODELS, run.model) for file in run.files}
    if model != ALL_MODELS and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", model):
        raise UsageError(f"--ddl {engine}: {model!r} is no name of a partition that camlake writes")
    if "images" not in files:
        raise UsageError(f"--ddl {engine}: allowed: an output with an annotated image; {safe_url(config.out)} has none")
    for old, new in dialect.protocols.items():
        url = new + url.removeprefix(old) if url.startswith(old) else url
    written = [spec for spec in TABLES.values() if spec.name in files | {"quarantine"}]
    yield f"-- {safe_url(config.out)} for {engine}; models: {model}"
    for spec in written:
        yield from dialect.tables(spec, f"{url}/{spec.name}")
    condition = "" if model == ALL_MODELS else f"\nWHERE found.model = {quote(model)}"
    for spec in written:
        current = CURRENT_ROWS_SQL.format(
            table=f"all_{spec.name}", images="all_images", quarantine="all_quarantine"
        ).strip()
        yield f"{dialect.view} {spec.name} AS\n{current}{condition};"


def _columns(spec: TableSpec, engine: int, mark: str) -> str:
    """Return a table's columns with their types, one a line; ``engine`` is a place in _TYPES, ``mark`` quotes names."""
    return ",\n".join(f"  {mark}{one.name}{mark} {_TYPES[one.type][engine]}" for one in spec.columns)


def _athena(spec: TableSpec, folder: str) -> Iterator[str]:
    yield (
        f"CREATE EXTERNAL TABLE all_{spec.name} (\n{_columns(spec, 0, '`')}\n)\nPARTITIONED BY (`model` string, `date`"
        f" date)\nSTORED AS PARQUET\nLOCATION {quote(folder + '/')};"
    )
    yield f"MSCK REPAIR TABLE all_{spec.name};"


def _trino(spec: TableSpec, folder: str) -> Iterator[str]:
    columns = _columns(spec, 1, '"')
    yield (
        f'CREATE TABLE all_{spec.name} (\n{columns},\n  "model" varchar,\n  "date" date\n)\nWITH (external_location ='
        f" {quote(folder + '/')}, format = 'PARQUET', partitioned_by = ARRAY['model', 'date']);"
    )
    yield f"CALL system.sync_partition_metadata('default', 'all_{spec.name}', 'FULL');"


def _spark(spec: TableSpec, folder: str) -> Iterator[str]:
    literal = re.sub(r"([\[\]{}*?\\])", r"\\\1", folder)  # Spark takes a path as a pattern
    path = literal.replace("\\", "\\\\").replace("'", "\\'")
    yield f"CREATE OR REPLACE TEMPORARY VIEW all_{spec.name} USING parquet OPTIONS (path '{path}');"


def _duckdb(spec: TableSpec, folder: str) -> Iterator[str]:
    literal = "".join(f"[{letter}]" if letter in "*?[" else letter for letter in folder)
    pattern = quote(f"{literal}/**/*.parquet")
    yield (
        f"CREATE OR REPLACE VIEW all_{spec.name} AS SELECT * FROM read_parquet({pattern}, hive_partitioning = true,"
        " hive_types = {'model': VARCHAR, 'date': DATE});"
    )


_DIALECTS: dict[Engine, _Dialect] = {
    "athena": _Dialect(_athena, "CREATE OR REPLACE VIEW"),
    "trino": _Dialect(_trino, "CREATE OR REPLACE VIEW"),
    "spark": _Dialect(_spark, "CREATE OR REPLACE TEMPORARY VIEW", {"s3://": "s3a://"}),
    "duckdb": _Dialect(_duckdb, "CREATE OR REPLACE VIEW"),
}
