"""Parquet files with a column of image bytes: which column, which rows, and their bytes."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipeline.storage.filesystems import Stores
from pipeline.storage.inputs.containers import open_parquet, unreadable
from pipeline.storage.inputs.entries import Container, Entry, named_entry
from pipeline.storage.store_failures import is_damage
from schemas.errors import InputError
from schemas.reasons import Reason

_IMAGE_COLUMNS = ("image", "img", "image_bytes", "bytes", "content", "data", "jpg", "jpeg", "png", "webp")


class ImageColumn(NamedTuple):
    """Where a Parquet file keeps its images: a column of bytes, or a struct<bytes, path> as Hugging Face writes it."""

    name: str
    nested: bool
    has_path: bool

    @property
    def bytes_column(self) -> str:
        """Return the Parquet name of the bytes."""
        return f"{self.name}.bytes" if self.nested else self.name


def find_image_column(schema: pa.Schema) -> ImageColumn | None:
    """Return the column of images: a struct with bytes, else binary with a usual name, else the only binary column.

    Returns None where no column is binary; raises InputError where several could be meant.
    """
    structs = [field.name for field in schema if _has_bytes(field.type)]
    binaries = [field.name for field in schema if _is_binary(field.type)]
    for names in (structs, [name for name in binaries if name.lower() in _IMAGE_COLUMNS], binaries):
        if names:
            name = _pick(names)
            kind = schema.field(name).type
            nested = pa.types.is_struct(kind)
            return ImageColumn(name, nested, nested and kind.get_field_index("path") >= 0)
    return None


def has_usual_image_column(schema: pa.Schema) -> bool:
    """Tell whether a column is surely one of images, by its struct or its name, not only because it is binary."""
    return any(
        _has_bytes(field.type) or (_is_binary(field.type) and field.name.lower() in _IMAGE_COLUMNS) for field in schema
    )


def _pick(names: Sequence[str]) -> str:
    usual = [name for name in names if name.lower() in _IMAGE_COLUMNS]
    if usual:
        return min(usual, key=lambda name: _IMAGE_COLUMNS.index(name.lower()))
    if len(names) > 1:
        raise InputError(f"several columns could hold the images ({', '.join(names)}); rename the right one to 'image'")
    return names[0]


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _has_bytes(kind: pa.DataType) -> bool:
    index = kind.get_field_index("bytes") if pa.types.is_struct(kind) else -1
    return index >= 0 and _is_binary(kind.field(index).type)


def list_parquet(fs: AbstractFileSystem, file: Container, stores: Stores) -> Iterator[Entry]:
    """Yield the rows of a Parquet file with images, reading no image bytes unless some rows have none.

    A row that has a path but no bytes names a file, as a manifest's row does. A file that can't be read is one entry
    with the reason ``unreadable_container``.
    """
    try:
        with open_parquet(fs, file.path) as parquet:
            column = find_image_column(parquet.schema_arrow)
            if column is None:
                raise pa.ArrowInvalid(f"no column of bytes among {', '.join(parquet.schema_arrow.names)}")
            row = 0
            for group in range(parquet.metadata.num_row_groups):
                for within, (path, has_bytes) in enumerate(_row_names(parquet, group, column)):
                    yield _row_entry(file, row, path, has_bytes, stores)._replace(begins_chunk=within == 0)
                    row += 1
    except (pa.ArrowException, OSError, InputError) as error:
        if not (is_damage(error) or isinstance(error, InputError)):
            raise
        yield unreadable(file, f"not a sound Parquet file of images: {str(error).splitlines()[0][:200]}")


def _row_entry(file: Container, row: int, path: str | None, has_bytes: bool, stores: Stores) -> Entry:
    if path and not has_bytes:
        return named_entry(path, file, row, stores)
    entry = Entry(
        f"{file.uri}#{row}" + (f"/{path}" if path else ""),
        file.path,
        file.version.tag,
        None,
        file.version.modified_us,
        offset=row,
    )
    return entry if has_bytes else entry._replace(reason=Reason.EMPTY, detail="the row has neither bytes nor a path")


def _row_names(parquet: pq.ParquetFile, group: int, column: ImageColumn) -> Iterator[tuple[str | None, bool]]:
    """Yield for each row of a row group its path, and whether it has bytes."""
    rows = parquet.metadata.row_group(group).num_rows
    nulls = _null_count(parquet, group, column.bytes_column)
    if not column.has_path and nulls == 0:
        yield from ((None, True) for _ in range(rows))
        return
    read = [] if nulls in (0, rows) else [column.bytes_column]
    if column.has_path:
        read.append(f"{column.name}.path")
    if not read:
        yield from ((None, False) for _ in range(rows))
        return
    for batch in parquet.iter_batches(1024 if nulls in (0, rows) else 16, row_groups=[group], columns=read):
        values = batch.column(0)
        paths = values.field("path").to_pylist() if column.has_path else [None] * len(values)
        if nulls in (0, rows):
            present = [nulls == 0] * len(values)
        else:
            present = (values.field("bytes") if column.nested else values).is_valid().to_pylist()
        yield from zip(paths, present, strict=True)


def _null_count(parquet: pq.ParquetFile, group: int, column: str) -> int | None:
    """Return how many values of a column chunk are null, None where the file does not say."""
    chunks = parquet.metadata.row_group(group)
    for index in range(chunks.num_columns):
        if chunks.column(index).path_in_schema == column:
            statistics = chunks.column(index).statistics
            return statistics.null_count if statistics is not None and statistics.has_null_count else None
    return None


def read_rows(parquet: pq.ParquetFile, rows: Sequence[int]) -> Iterator[tuple[int, bytes | None]]:
    """Yield the image bytes of the given rows, ascending and distinct, as (row, bytes); null bytes are None.

    Each row group that holds one of them is streamed once, up to the last row wanted. Raises pa.ArrowException for
    damage and IndexError for a row that is not there.
    """
    column = find_image_column(parquet.schema_arrow)
    if column is None:
        raise pa.ArrowInvalid("no column of image bytes")
    start, position = 0, 0
    for group in range(parquet.metadata.num_row_groups):
        end = start + parquet.metadata.row_group(group).num_rows
        stop = position
        while stop < len(rows) and rows[stop] < end:
            stop += 1
        if stop > position:
            yield from _read_group(parquet, group, column, start, rows[position:stop])
        start, position = end, stop
    if position < len(rows):
        raise IndexError(f"row {rows[position]} of {start}")


def _read_group(
    parquet: pq.ParquetFile, group: int, column: ImageColumn, start: int, rows: Sequence[int]
) -> Iterator[tuple[int, bytes | None]]:
    wanted = iter(rows)
    row = next(wanted)
    for batch in parquet.iter_batches(16, row_groups=[group], columns=[column.bytes_column]):
        values = batch.column(0).field("bytes") if column.nested else batch.column(0)
        while row < start + len(values):
            yield row, values[row - start].as_py()
            following = next(wanted, None)
            if following is None:
                return
            row = following
        start += len(values)
