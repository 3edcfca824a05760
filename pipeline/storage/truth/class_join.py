"""Finds the planned inputs to which the classes of ``--classes`` belong. This module reads no files."""

from typing import TypeAlias

import duckdb
import pyarrow as pa

from pipeline.storage.names import sql_parts

ClassTable: TypeAlias = pa.Table
"""The columns of CLASSES."""
CLASSES = pa.schema(
    [pa.field("key", pa.string(), nullable=False), pa.field("class_ids", pa.list_(pa.int32()), nullable=False)]
)
"""Classes named for an image: ``key`` is its uri, or the end of it after a ``/``."""


def join_classes(con: duckdb.DuckDBPyConnection, classes: ClassTable | None) -> None:
    """Make the table ``named`` from the table ``planned``: the classes of each planned input that a key names.

    A key of n parts names the uris whose last n parts it is, as ``pipeline.storage.names`` compares names, which makes
    this a plain hash join for each n.
    """
    con.execute("CREATE TABLE named (seq BIGINT, classes INTEGER[])")
    if classes is None:
        return
    con.execute("CREATE TABLE keys (key VARCHAR, class_ids INTEGER[])")
    append_rows(con, "keys", classes.select(CLASSES.names))
    con.execute(f"CREATE TABLE parts AS SELECT seq, {sql_parts('uri')} AS parts FROM planned")
    con.execute(f"CREATE TABLE wanted AS SELECT {sql_parts('key')} AS parts, class_ids FROM keys")
    lengths = con.execute("SELECT DISTINCT len(parts) FROM wanted").fetchall()
    for (length,) in lengths:
        con.execute(
            "INSERT INTO named SELECT seq, class_ids FROM"
            f" (SELECT seq, list_slice(parts, -{length}, -1) AS tail FROM parts) AS tails"
            f" JOIN (SELECT * FROM wanted WHERE len(parts) = {length}) AS keys ON tail = keys.parts"
        )
    con.execute(
        "CREATE OR REPLACE TABLE named AS SELECT seq, list_sort(list_distinct(flatten(list(classes)))) AS classes"
        " FROM named GROUP BY seq"
    )


def append_rows(con: duckdb.DuckDBPyConnection, name: str, table: pa.Table) -> None:
    """Append an Arrow table's rows to a table of the same columns."""
    con.register("arrived", table)
    con.execute(f"INSERT INTO {name} SELECT * FROM arrived")
    con.unregister("arrived")
