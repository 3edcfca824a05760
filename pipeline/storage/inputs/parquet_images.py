"""Parquet files with a column of image bytes: which column, which rows, and their bytes."""

import base64
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipeline.storage.filesystems import Stores
from pipeline.storage.inputs.containers import open_parquet, unreadable
from pipeline.storage.inputs.entries import Container, Entry, named_entry, own_id
from pipeline.storage.inputs.file_names import looks_like_image
from pipeline.storage.names import chosen_column
from pipeline.storage.store_failures import describe_failure, is_damage
from schemas.errors import InputError, RejectedImage
from schemas.input_options import InputOptions
from schemas.reasons import Reason

_IMAGE_COLUMNS = ("image", "img", "image_bytes", "input", "bytes", "content", "data", "jpg", "jpeg", "png", "webp")
_PEEK_ROWS = 1_000
"""Rows in which the first text of a column is searched; a column without a text in these rows has no images."""
_BASE64 = re.compile(r"(?:data:image/[\w.+-]+;base64,)?([A-Za-z0-9+/_\s-]{40,}={0,2})\s*")
_BASE64_HEAD = 400
"""Characters that show whether a text is a picture in base64: a multiple of four."""

Cell = bytes | RejectedImage | None
"""The image bytes of one row, or their rejection; None where the row has no bytes."""


class ImageColumn(NamedTuple):
    """The column of a Parquet file that holds the images."""

    name: str
    kind: Literal["bytes", "struct", "list", "base64"]
    """Bytes, a struct<bytes, path> as Hugging Face writes it, a list of one of these, or a text in base64."""
    has_path: bool = False

    @property
    def bytes_column(self) -> str:
        """Return the Parquet name of the bytes."""
        return f"{self.name}.bytes" if self.kind == "struct" else self.name


def find_image_column(parquet: pq.ParquetFile, chosen: str | None = None) -> ImageColumn | None:
    """Return the column of images: the ``chosen`` one, or else the only one that fits.

    A struct with bytes fits; else bytes or base64 texts with a usual name; else the only column of bytes. Returns None
    where no column fits. Raises InputError where several fit, ColumnError where the chosen column does not exist, and
    InputError, with the column's type, where it has no bytes.
    """
    schema = parquet.schema_arrow
    if chosen is not None:
        name = chosen_column(schema.names, chosen, "--image-column")
        column = _column(schema.field(name), text_is_base64=True)
        if column is None:
            raise InputError(f"--image-column {name!r} is of type {schema.field(name).type}; {_ALLOWED}")
        return column
    columns = [column for field in schema if (column := _column(field))]
    usual = [column for column in columns if column.name.lower() in _IMAGE_COLUMNS]
    texts = [_column(field, text_is_base64=True) for field in schema if field.name.lower() in _IMAGE_COLUMNS]
    base64s = [one for one in texts if one and one.kind == "base64" and _holds_base64(parquet, one.name)]
    for group in ([column for column in columns if column.kind == "struct"], usual, base64s, columns):
        if group:
            return _pick(group)
    return None


_ALLOWED = "allowed: binary, struct<bytes, path>, a list of one of these, base64 text"


def has_usual_image_column(parquet: pq.ParquetFile) -> bool:
    """Return whether a column certainly holds images, by its struct or its name and not only because it holds bytes."""
    try:
        column = find_image_column(parquet)
    except InputError:
        return False
    return column is not None and (column.kind == "struct" or column.name.lower() in _IMAGE_COLUMNS)


def _pick(columns: Sequence[ImageColumn]) -> ImageColumn:
    usual = [column for column in columns if column.name.lower() in _IMAGE_COLUMNS]
    if usual:
        return min(usual, key=lambda column: _IMAGE_COLUMNS.index(column.name.lower()))
    if len(columns) > 1:
        names = ", ".join(column.name for column in columns)
        raise InputError(f"several columns could hold the images ({names}); --image-column chooses")
    return columns[0]


def _column(field: pa.Field, *, text_is_base64: bool = False) -> ImageColumn | None:
    """Return how a column holds images; None where its type holds none."""
    kind = _stored(field.type)
    if _is_list(kind):
        inside = _column(pa.field(field.name, kind.value_type))
        return inside and ImageColumn(field.name, "list")
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        if index < 0 or not _is_binary(_stored(kind.field(index).type)):
            return None
        return ImageColumn(field.name, "struct", kind.get_field_index("path") >= 0)
    if _is_binary(kind):
        return ImageColumn(field.name, "bytes")
    return ImageColumn(field.name, "base64") if text_is_base64 and is_text(kind) else None


def _stored(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values where a type is dictionary-encoded."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def is_text(kind: pa.DataType) -> bool:
    """Return whether a column's type is text, plain or dictionary-encoded."""
    plain = _stored(kind)
    return bool(pa.types.is_string(plain) or pa.types.is_large_string(plain) or pa.types.is_string_view(plain))


def _holds_base64(parquet: pq.ParquetFile, name: str) -> bool:
    """Return whether the first text of a column is a picture in base64."""
    seen = 0
    for batch in parquet.iter_batches(16, columns=[name]):
        text = next((value for value in batch.column(0).to_pylist() if value), None)
        seen += len(batch)
        if text is not None or seen >= _PEEK_ROWS:
            return text is not None and is_base64_image(text)
    return False


def is_base64_image(text: str) -> bool:
    """Return whether a text is a picture in base64, with or without ``data:image/...;base64,`` before it."""
    match = _BASE64.match(text[: 2 * _BASE64_HEAD])
    head = "".join(match[1].split())[:_BASE64_HEAD] if match else ""
    return looks_like_image(_decoded(head[: len(head) // 4 * 4]))


def _decoded(text: str) -> bytes:
    """Return the bytes of a text in base64, of either alphabet; raises ValueError for any other text."""
    plain = "".join(text.split()).rstrip("=").translate(str.maketrans("-_", "+/"))
    return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)


def list_parquet(fs: AbstractFileSystem, file: Container, stores: Stores, how: InputOptions) -> Iterator[Entry]:
    """Yield the rows of a Parquet file with images, reading no image bytes unless some rows have none.

    A row that has a path but no bytes names a file, as a manifest's row does. A file that can't be read is one entry
    with the reason ``unreadable_container``. Raises ColumnError for a chosen column that is not there, and InputError
    for a row without an id where ``how`` names a column of ids.
    """
    try:
        with open_parquet(fs, file.path) as parquet:
            column = find_image_column(parquet, how.image_column)
            if column is None:
                raise pa.ArrowInvalid(f"no column of bytes among {', '.join(parquet.schema_arrow.names)}")
            marked = f"@{column.name.replace('/', '%2F')}" if how.image_column else ""
            row = 0
            for group in range(parquet.metadata.num_row_groups):
                ids = _ids(parquet, group, file, row, how.id_column)
                names = _row_names(parquet, group, column)
                for within, ((path, has_bytes), own) in enumerate(zip(names, ids, strict=True)):
                    entry = _row_entry(file, f"#{row}{marked}", row, path, has_bytes, stores)
                    yield entry._replace(begins_chunk=within == 0, own_id=own)
                    row += 1
    except (pa.ArrowException, OSError) as error:
        if not is_damage(error):
            raise
        yield unreadable(file, f"not a sound Parquet file of images: {describe_failure(error)}")


def _row_entry(file: Container, mark: str, row: int, path: str | None, has_bytes: bool, stores: Stores) -> Entry:
    if path and not has_bytes:
        return named_entry(path, file, row, stores)
    uri = f"{file.uri}{mark}" + (f"/{path}" if path else "")
    entry = Entry(uri, file.path, file.version.tag, None, file.version.modified_us, offset=row)
    if has_bytes:
        return entry
    return entry._replace(rejected=RejectedImage(Reason.EMPTY, "the row has neither bytes nor a path"))


def chosen_in(uri: str, row: int) -> str | None:
    """Return the column that a row's uri names because the user chose it; None where the uri names none."""
    _, mark, rest = uri.rpartition(f"#{row}@")
    return rest.split("/")[0].replace("%2F", "/") if mark else None


def _ids(parquet: pq.ParquetFile, group: int, file: Container, first: int, wanted: str | None) -> list[str | None]:
    """Return the user's id of each row of a row group; all are None where ``wanted`` names no column."""
    if wanted is None:
        return [None] * parquet.metadata.row_group(group).num_rows
    name = chosen_column(parquet.schema_arrow.names, wanted, "--id-column")
    values = parquet.read_row_group(group, columns=[name]).column(0).to_pylist()
    return [own_id(value, f"{file.uri}: row {row}", name) for row, value in enumerate(values, start=first)]


def _row_names(parquet: pq.ParquetFile, group: int, column: ImageColumn) -> Iterator[tuple[str | None, bool]]:
    """Yield for each row of a row group its path, and whether it has bytes."""
    rows = parquet.metadata.row_group(group).num_rows
    # The content of a list is only known when the list is read.
    nulls = 0 if column.kind == "list" else _null_count(parquet, group, column.bytes_column)
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
            present = (values.field("bytes") if column.kind == "struct" else values).is_valid().to_pylist()
        yield from zip(paths, present, strict=True)


def _null_count(parquet: pq.ParquetFile, group: int, column: str) -> int | None:
    """Return how many values of a column chunk are null, None where the file does not say."""
    chunks = parquet.metadata.row_group(group)
    for index in range(chunks.num_columns):
        if chunks.column(index).path_in_schema == column:
            statistics = chunks.column(index).statistics
            return statistics.null_count if statistics is not None and statistics.has_null_count else None
    return None


def read_rows(parquet: pq.ParquetFile, rows: Sequence[int], chosen: str | None = None) -> Iterator[tuple[int, Cell]]:
    """Yield the image bytes of the given rows, ascending and distinct, as (row, bytes); null bytes are None.

    A cell that holds several images, or a text that is no base64, is yielded as its rejection. Each row group that
    holds one of the rows is streamed once, up to the last row wanted. Raises pa.ArrowException for damage and
    IndexError for a row that is not there.
    """
    column = find_image_column(parquet, chosen)
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
) -> Iterator[tuple[int, Cell]]:
    wanted = iter(rows)
    row = next(wanted)
    for batch in parquet.iter_batches(16, row_groups=[group], columns=[column.bytes_column]):
        values = batch.column(0)
        while row < start + len(values):
            yield row, _cell(values[row - start].as_py())
            following = next(wanted, None)
            if following is None:
                return
            row = following
        start += len(values)


def _cell(value: Any) -> Cell:
    """Return the bytes in a cell of any kind of image column, or its rejection."""
    if isinstance(value, list):
        if len(value) > 1:
            return RejectedImage(Reason.UNSUPPORTED, f"the cell holds {len(value)} images; allowed: one")
        return _cell(value[0]) if value else None
    if isinstance(value, dict):
        return _cell(value.get("bytes"))
    if isinstance(value, str):
        try:
            return _decoded(value.rpartition(";base64,")[2])
        except ValueError:
            return RejectedImage(Reason.NOT_AN_IMAGE, "the cell's text is no base64")
    return value if value is None else bytes(value)
