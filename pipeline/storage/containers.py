"""Files that hold many images: WebDataset tar shards and Parquet files with a column of image bytes."""

import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipeline.storage.entries import Container, Entry, named_entry
from pipeline.storage.filesystems import Stores, is_local
from schemas.errors import InputError
from schemas.reasons import Reason

_IMAGES = """
.jpg .jpeg .jpe .jfif .png .apng .webp .gif .bmp .dib .tif .tiff .avif .heic .heif .jp2 .j2k .jpx .jxl .ppm .pgm .pbm
.pnm .ico .tga .psd .pcx .dds .sgi
"""
IMAGE_SUFFIXES = frozenset(_IMAGES.split())
"""What names a member of a tar shard as an image; the decoder goes by the content."""
_IMAGE_COLUMNS = ("image", "img", "image_bytes", "bytes", "content", "data", "jpg", "jpeg", "png", "webp")
_READ_BYTES = 8 * 2**20
"""One request of a sequential read: large enough that an object store's latency does not matter."""


def suffix_of(path: str) -> str:
    """Return the last extension of a path with its dot, in lower case; empty where there is none."""
    return posixpath.splitext(path)[1].lower()


def open_sequential(fs: AbstractFileSystem, path: str) -> Any:
    """Open an object to be read from its beginning in large requests."""
    return fs.open(path, "rb", block_size=_READ_BYTES, cache_type="readahead")


@contextmanager
def open_parquet(fs: AbstractFileSystem, path: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file so that its columns are streamed, not loaded; ``is_damage`` knows an unsound one's errors."""
    with (
        Path(path).open("rb") if is_local(fs) else fs.open(path, "rb", cache_type="none") as file,
        pq.ParquetFile(file, buffer_size=_READ_BYTES, pre_buffer=False) as parquet,
    ):
        yield parquet


def is_damage(error: BaseException) -> bool:
    """Tell whether pyarrow failed because of a file's content: by ArrowInvalid, or an OSError without a number."""
    return isinstance(error, pa.ArrowException) or (type(error) is OSError and error.errno is None)


# -- tar shards --------------------------------------------------------------------------------------------------------


def list_shard(fs: AbstractFileSystem, shard: Container, skipped: Counter[str]) -> Iterator[Entry]:
    """Yield the images of a tar shard, reading its headers once from front to back.

    Other members count in ``skipped`` by extension. What lies after damage can't be listed: one entry with the reason
    ``unreadable_container`` stands for it.
    """
    etag, size_bytes, modified_us = shard.version
    damage: str | None = None
    with open_sequential(fs, shard.path) as file:
        end = file.seek(0, 2) if size_bytes is None else size_bytes
        file.seek(0)
        try:
            for member in _members(file):
                name = member.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
                hidden = posixpath.basename(name).startswith(".")
                if hidden or not member.isreg() or member.issparse() or suffix_of(name) not in IMAGE_SUFFIXES:
                    if member.isfile():
                        skipped[suffix_of(name) or "no extension"] += 1
                    continue
                if member.offset_data + member.size > end:
                    damage = f"ends inside its member {name!r}"
                    break
                uri = f"{shard.uri}#{name}"
                yield Entry(uri, shard.path, etag, member.size, modified_us, offset=member.offset_data)
        except tarfile.TarError as error:
            damage = f"not a sound tar file: {error}"
    if damage:
        yield _unreadable(shard, damage)


def _members(file: Any) -> Iterator[tarfile.TarInfo]:
    """Yield the headers of a tar; raises tarfile.ReadError for damage, also where tarfile would stop silently."""
    tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 (the caller closes the file)
    while (member := tar.next()) is not None:
        if tar.offset <= member.offset:
            raise tarfile.ReadError(f"impossible size in the header at byte {member.offset}")
        yield member
        tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
    file.seek(tar.offset)
    if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"no header and no end mark at byte {tar.offset}")


def _unreadable(container: Container, detail: str) -> Entry:
    return Entry(container.uri, container.path, *container.version, reason=Reason.UNREADABLE_CONTAINER, detail=detail)


# -- Parquet files with image bytes ------------------------------------------------------------------------------------


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
                for path, has_bytes in _row_names(parquet, group, column):
                    yield _row_entry(file, row, path, has_bytes, stores)
                    row += 1
    except (pa.ArrowException, OSError, InputError) as error:
        if not (is_damage(error) or isinstance(error, InputError)):
            raise
        yield _unreadable(file, f"not a sound Parquet file of images: {str(error).splitlines()[0][:200]}")


def _row_entry(file: Container, row: int, path: str | None, has_bytes: bool, stores: Stores) -> Entry:
    etag, _, modified_us = file.version
    if path and not has_bytes:
        return named_entry(path, file, row, stores)
    entry = Entry(f"{file.uri}#{row}" + (f"/{path}" if path else ""), file.path, etag, None, modified_us, offset=row)
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
