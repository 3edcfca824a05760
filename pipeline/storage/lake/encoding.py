"""The tables as Parquet: compression, dictionaries and row groups.

`python -m tests.benchmarks.encoding` measures other choices.
"""

import inspect
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.tables import TABLES


@dataclass(frozen=True)
class Encoding:
    """The settings with which rows become a Parquet file.

    The figures below were measured on 20,480 photographs with MobileNetV2: 7x7 maps, 1,280 features.
    """

    compression: Literal["zstd", "snappy"] = "zstd"
    level: int | None = 3
    """Level of zstd. Level 1 makes all tables 6 % larger; level 6 makes them 5 % smaller but takes 1.8 times as long to
    write. Queries take equally long."""
    dictionary: bool = True
    """Whether repeated values and the bytes of lists are stored through a dictionary. Parquet stores a byte as 32 bits,
    but its index in a dictionary of 256 values as 8 bits. Without dictionaries all tables are 2 % larger and maps take
    longer to read."""
    row_group_bytes: int = 16 * 2**20
    """Bytes of a row group of heavy rows; a reader of one row reads the whole row group. With 16 MiB DuckDB finds all
    rows of an image in 35 ms of CPU, with 64 MiB in 86, with 4 MiB in 22. The size of the tables is the same, and
    object stores are efficient with requests of some MB."""
    row_group_rows: int = 20_480
    """Light rows in a row group. With 5,000 all tables are 1 % larger and counts of all rows take longer; 65,536 rows
    bring no gain."""
    sorted_by: str = "image_id"
    """The first column by which the rows are sorted."""
    without_dictionary: frozenset[str] = frozenset()
    """Columns whose repeated values are not stored through a dictionary all the same."""
    statistics: frozenset[str] | None = None
    """Columns with the least and the greatest value of each row group in the footer; None: all plain columns."""
    bloom: frozenset[str] = frozenset({"image_id"})
    """Columns with a Bloom filter for each row group, where the installed pyarrow writes such filters. Ids are hashes,
    so each file has ids of the whole range, and only a filter says which files an image is not in."""


BOXES_BY_LABEL = Encoding(
    level=9,
    row_group_rows=8_192,
    sorted_by="label",
    without_dictionary=frozenset({"uri"}),
    statistics=frozenset({"image_id", "run_id", "label", "class_id", "rank", "class_prob", "box_score"}),
)
"""Boxes sorted by label and score: a query for a label reads few row groups, and one for an image finds its own by the
Bloom filters. `python -m tests.benchmarks.queries` measures it: the price is that an image's boxes lie apart, so that
image_id and uri, which are random, are stored once for each box."""
LABEL_ORDER = ("label", "box_score", "image_id", "rank", "threshold", "component")
"""The columns by which such boxes are sorted."""
_BLOOM_ERRORS = 0.05
"""Share of the row groups without an image that its look-up reads in vain. 1 % takes half as many bytes more."""
_WRITES_BLOOM = "bloom_filter_options" in inspect.signature(pq.ParquetWriter.__init__).parameters

_WIDE_LEVEL = 1
"""Level of zstd for tables with codes of feature maps: 2 % smaller than with level 3, in two thirds of the time."""
_LEAST_ROWS = 1024
"""Least rows of a row group, for tables whose rows are not binary; codes of feature maps take 31 kB a row."""


def to_parquet(rows: pa.Table, encoding: Encoding = Encoding()) -> bytes:
    """Return ``rows``, sorted as ``encoding`` says, as a Parquet file with a page index and page checksums.

    It uses only encodings that every engine reads: BYTE_STREAM_SPLIT would make features 5 % smaller, but the
    vectorized reader of Spark 4 does not know it.
    """
    sink = io.BytesIO()
    bytes_a_row = max(1, rows.nbytes // max(1, len(rows)))
    wide = [field.name for field in rows.schema if pa.types.is_large_binary(field.type)]
    plain = [field.name for field in rows.schema if not pa.types.is_nested(field.type) and field.name not in wide]
    repeated = [name for name in _dictionary_columns(rows.schema) if name not in encoding.without_dictionary]
    most = min(encoding.row_group_rows, encoding.row_group_bytes // bytes_a_row)
    group_rows = max(1 if wide else _LEAST_ROWS, most)
    filters = {
        name: {"ndv": _distinct(rows[name], group_rows, name == encoding.sorted_by), "fpp": _BLOOM_ERRORS}
        for name in encoding.bloom.intersection(rows.schema.names)
    }
    pq.write_table(
        rows,
        sink,
        row_group_size=group_rows,
        compression=encoding.compression,
        compression_level=_WIDE_LEVEL if wide and encoding.level else encoding.level,
        use_dictionary=repeated if encoding.dictionary else False,
        write_statistics=[name for name in plain if encoding.statistics is None or name in encoding.statistics],
        write_page_index=True,
        write_page_checksum=True,
        sorting_columns=[pq.SortingColumn(rows.schema.get_field_index(encoding.sorted_by))],
        **({"bloom_filter_options": filters} if filters and _WRITES_BLOOM else {}),
    )
    return sink.getvalue()


def _distinct(column: pa.ChunkedArray, group_rows: int, is_sorted: bool) -> int:
    """Return how many values a row group of a column has at most, or about as many where the column is sorted."""
    values = int(pc.count_distinct(column).as_py())
    share = min(1.0, group_rows / max(1, len(column))) if is_sorted else 1.0
    return max(1, min(group_rows, math.ceil(values * share)))


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
