"""The tables as Parquet: compression, dictionaries and row groups.

`python -m tests.benchmarks.encoding` measures other choices.
"""

import inspect
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.errors import StoreError
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
    bloom: frozenset[str] = frozenset({"image_id"})
    """Columns with a Bloom filter for each row group, where the installed pyarrow writes such filters. Ids are hashes,
    so each file has ids of the whole range, and only a filter says which files an image is not in."""


CONFIDENT = 0.5
"""The ``box_score`` from which a box is more likely right than wrong. Confident boxes have row groups of their own."""
CONFIDENT_ROWS = 1024
"""Most confident boxes in a row group. A query for a label reads the ids and uris of its row group as a whole, because
each of them stands once in the row group's dictionary: with 4,400 in one row group, a query for a rare label read
10 % of the bytes, with 1,024 it read 6 % (footers of 32 KiB)."""
BOX_BLOCK_ROWS = 65_536
"""Boxes that share their row groups: those of consecutive image_ids, about as many as a commit has. Over a whole commit
an id costs a dictionary entry for each image and two bytes for each box, in whatever order the boxes are. Without the
dictionary an id takes 17.6 bytes of a box instead of 9.1, and the table is 1.3 times as large."""
PAGE_ROWS = 2048
"""Rows of a page of boxes; DuckDB reads only pages that may have a label. With pages of 512 the table is 4 % larger."""
_DICTIONARY_BYTES = 2**24
"""More than the ids and uris of a row group of boxes take. By default a dictionary ends at 1 MiB."""
_BLOOM_ERRORS = 0.05
"""Share of the row groups without an image that its look-up reads in vain. 1 % takes half as many bytes more."""
_PARAMETERS = inspect.signature(pq.ParquetWriter.__init__).parameters
"""Older versions of pyarrow write neither Bloom filters nor pages of a given number of rows."""

_WIDE_LEVEL = 1
"""Level of zstd for tables with codes of feature maps: 2 % smaller than with level 3, in two thirds of the time."""
_LEAST_ROWS = 1024
"""Least rows of a row group, for tables whose rows are not binary; codes of feature maps take 31 kB a row."""


def to_parquet(rows: pa.Table, encoding: Encoding = Encoding()) -> bytes:
    """Return ``rows``, which are sorted by image_id, as a Parquet file with a page index and page checksums.

    Boxes may come in any order, and get one of their own: see ``_box_groups``. Of 1,000,000 boxes in commits of 50,000,
    where 9 % are confident, DuckDB reads 3.7 % of the bytes for the confident ones of a rare label (53 % where boxes
    lie by image), 8.6 % for the edges of a label that 13 % have (60 %), 3.5 % for an image (7.0 %); the table is 1.08
    times as large. The gain for a rare label hangs on ``CONFIDENT``: with a score from .3 on it is 33 % (73 %), and
    after `camlake compact` 80 %, because ids and uris of the other boxes are then read as a whole. Where more boxes are
    confident, the table is larger. `python -m tests.benchmarks.queries` measures it.

    It uses only encodings that every engine reads: BYTE_STREAM_SPLIT would make features 5 % smaller, but Spark 4.0,
    Iceberg's reader in Spark and others do not know it.
    """
    sink = io.BytesIO()
    wide = [field.name for field in rows.schema if pa.types.is_large_binary(field.type)]
    plain = [field.name for field in rows.schema if not pa.types.is_nested(field.type) and field.name not in wide]
    by_label = {"image_id", "label", "box_score"} <= set(rows.schema.names)
    groups = list(_box_groups(rows)) if by_label else list(_slices(rows, _most_rows(rows, encoding, bool(wide))))
    repeated = _dictionary_columns(rows.schema) + (["image_id"] if by_label else [])
    filters = {
        name: {"ndv": max(pc.count_distinct(group[name]).as_py() for group in groups), "fpp": _BLOOM_ERRORS}
        for name in encoding.bloom.intersection(rows.schema.names)
        if groups
    }
    order = [("label", False), ("box_score", True)] if by_label else [("image_id", False)]
    newer: dict[str, Any] = {"bloom_filter_options": filters} if filters else {}
    newer |= {"max_rows_per_page": PAGE_ROWS} if by_label else {}
    with pq.ParquetWriter(
        sink,
        rows.schema,
        compression=encoding.compression,
        compression_level=_WIDE_LEVEL if wide and encoding.level else encoding.level,
        use_dictionary=repeated if encoding.dictionary else False,
        dictionary_pagesize_limit=_DICTIONARY_BYTES if by_label else None,
        write_statistics=plain,
        write_page_index=True,
        write_page_checksum=True,
        sorting_columns=[pq.SortingColumn(rows.schema.get_field_index(name), descending) for name, descending in order],
        **{name: value for name, value in newer.items() if name in _PARAMETERS},
    ) as writer:
        for group in groups:
            writer.write_table(group, row_group_size=max(1, len(group)))
    return sink.getvalue()


def _box_groups(rows: pa.Table) -> Iterator[pa.Table]:
    """Yield the row groups of boxes, each ordered by label and then from the highest score to the lowest.

    The boxes of a block of images are in the same row groups: the confident ones in some small ones, the others in one.
    """
    order = [("label", "ascending"), ("box_score", "descending"), ("image_id", "ascending")]
    for block in _slices(rows.sort_by("image_id"), BOX_BLOCK_ROWS):
        confident = pc.greater_equal(block["box_score"], CONFIDENT).fill_null(False)
        yield from _slices(block.filter(confident).sort_by(order), CONFIDENT_ROWS)
        yield from _slices(block.filter(pc.invert(confident)).sort_by(order), BOX_BLOCK_ROWS)


def _slices(rows: pa.Table, most: int) -> Iterator[pa.Table]:
    yield from (rows.slice(start, most) for start in range(0, len(rows), most))


def _most_rows(rows: pa.Table, encoding: Encoding, wide: bool) -> int:
    bytes_a_row: int = max(1, rows.nbytes // max(1, len(rows)))
    return max(1 if wide else _LEAST_ROWS, min(encoding.row_group_rows, encoding.row_group_bytes // bytes_a_row))


def _dictionary_columns(schema: pa.Schema) -> list[str]:
    of_bytes = [f"{field.name}.list.element" for field in schema if field.type == pa.list_(pa.uint8())]
    repeated = {name for spec in TABLES.values() for name in spec.repeated}
    return [name for name in schema.names if name in repeated] + of_bytes


def from_parquet(content: bytes | None, path: str, columns: list[str] | None = None) -> pa.Table:
    """Return the rows of a file's ``content``; raises StoreError, which names ``path``, for None and damaged bytes."""
    if content is None:
        raise StoreError(f"{path} is missing; `camlake verify` says what else")
    try:
        return pq.read_table(pa.BufferReader(content), columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{path} can't be read: {str(error).splitlines()[0]}") from error


def in_row_groups(tables: Sequence[pa.Table]) -> bytes:
    """Return a Parquet file with a row group for each table."""
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, tables[0].schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table, row_group_size=len(table))
    return buffer.getvalue()
