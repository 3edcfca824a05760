"""The tables as Parquet: compression, dictionaries and row groups.

`python -m tests.benchmarks.encoding` measures what other choices would give.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.tables import TABLES


@dataclass(frozen=True)
class Encoding:
    """How rows become a file.

    The figures below were measured on 20,480 photographs with MobileNetV2: 7x7 maps, 1,280 features.
    """

    compression: Literal["zstd", "snappy"] = "zstd"
    level: int | None = 3
    """Of zstd. Level 1 makes all 6 % larger, level 6 takes 1.8 times as long for 5 % less; queries don't differ."""
    dictionary: bool = True
    """Whether repeated values and the bytes of lists go through a dictionary. Parquet stores a byte as a number of 32
    bits, a place in a dictionary of 256 as 8: without, all tables are 2 % larger and maps take longer to read."""
    row_group_bytes: int = 16 * 2**20
    """A reader of one heavy row reads its whole row group: with 16 MiB DuckDB finds all rows of an image in 35 ms of
    CPU, with 64 MiB in 86, with 4 MiB in 22; the size is the same, and object stores want requests of some MB."""
    row_group_rows: int = 20_480
    """Of light rows: with 5,000 all tables are 1 % larger and counts over all take longer; 65,536 win nothing."""


def to_parquet(rows: pa.Table, encoding: Encoding = Encoding()) -> bytes:
    """Return ``rows``, which are sorted by image_id, as a Parquet file with a page index and page checksums.

    It uses only encodings that every engine reads: BYTE_STREAM_SPLIT would make features 5 % smaller, but the
    vectorized reader of Spark 4 does not know it.
    """
    sink = io.BytesIO()
    bytes_a_row = max(1, rows.nbytes // max(1, len(rows)))
    pq.write_table(
        rows,
        sink,
        row_group_size=max(1024, min(encoding.row_group_rows, encoding.row_group_bytes // bytes_a_row)),
        compression=encoding.compression,
        compression_level=encoding.level,
        use_dictionary=_dictionary_columns(rows.schema) if encoding.dictionary else False,
        write_statistics=[field.name for field in rows.schema if not pa.types.is_nested(field.type)],
        write_page_index=True,
        write_page_checksum=True,
        sorting_columns=[pq.SortingColumn(rows.schema.get_field_index("image_id"))],
    )
    return sink.getvalue()


def _dictionary_columns(schema: pa.Schema) -> list[str]:
    of_bytes = [f"{field.name}.list.element" for field in schema if field.type == pa.list_(pa.uint8())]
    repeated = {name for spec in TABLES.values() for name in spec.repeated}
    return [name for name in schema.names if name in repeated] + of_bytes


def in_row_groups(tables: Sequence[pa.Table]) -> bytes:
    """Return a Parquet file with a row group for each table."""
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, tables[0].schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table, row_group_size=len(table))
    return buffer.getvalue()
