"""Manifests: tables that name images by uri, as CSV, JSON Lines or Parquet."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
from fsspec import AbstractFileSystem
from pyarrow import csv

from pipeline.storage.filesystems import Stores
from pipeline.storage.inputs.containers import open_parquet
from pipeline.storage.inputs.entries import Container, Entry, named_entry, own_id, with_versions
from pipeline.storage.inputs.file_names import PARQUET_SUFFIXES, suffix_of
from pipeline.storage.inputs.parquet_images import is_base64_image
from pipeline.storage.inputs.versions import Version, microseconds
from pipeline.storage.names import chosen_column, find_columns, image_column, is_empty
from pipeline.storage.store_failures import describe_failure
from schemas.errors import InputError, RejectedImage
from schemas.input_options import InputOptions
from schemas.label_text import parse_json
from schemas.reasons import Reason

_VERSION_COLUMNS = ("etag", "size_bytes", "modified_at")
_BATCH_ROWS = 10_000

Row = tuple[Any, ...]
"""The cells of a row in the columns of ``_Columns``; None for a column that the manifest does not have."""


class _Columns(NamedTuple):
    """Names of the columns that are read; None for one that the manifest does not have."""

    uri: str
    etag: str | None
    size_bytes: str | None
    modified_at: str | None
    own_id: str | None

    @property
    def present(self) -> list[str]:
        return list(dict.fromkeys(name for name in self if name))


def list_manifest(fs: AbstractFileSystem, manifest: Container, stores: Stores, how: InputOptions) -> Iterator[Entry]:
    """Yield one entry for each row, in order; the store completes versions that the manifest does not have.

    Relative uris are relative to the manifest's folder. A row without uri is an entry with the reason ``missing_uri``.
    Raises InputError for a manifest that can't be parsed, in which no column or several columns could be the uri, or
    that has an invalid cell; the message names the cell's row and column.
    """
    return with_versions(_named(fs, manifest, stores, how), stores)


def _named(fs: AbstractFileSystem, manifest: Container, stores: Stores, how: InputOptions) -> Iterator[Entry]:
    suffix = suffix_of(manifest.path)
    read = _read_parquet if suffix in PARQUET_SUFFIXES else _READERS.get(suffix, _read_jsonl)
    try:
        for row, cells in enumerate(read(fs, manifest, how)):
            yield _entry_of(cells, row, manifest, stores, how)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise InputError(f"manifest {manifest.uri}: {describe_failure(error)}") from error


def _entry_of(cells: Row, row: int, manifest: Container, stores: Stores, how: InputOptions) -> Entry:
    uri, etag, size_bytes, modified_at, own = cells
    where = f"row {row}"
    text = "" if is_empty(uri) else str(uri)
    if not text.strip():
        missing = f"{manifest.uri}#row={row}"
        return Entry(missing, manifest.path, rejected=RejectedImage(Reason.MISSING_URI, f"{where} has no uri"))
    if is_base64_image(text):
        raise ValueError(f"{where} holds an image in base64, not its uri; write the images' bytes to a Parquet file")
    version = Version(
        None if is_empty(etag) else str(etag).strip('"'), _size(size_bytes, where), _time(modified_at, where)
    )
    entry = named_entry(text, manifest, row, stores, version)
    return (
        entry._replace(own_id=own_id(own, f"manifest {manifest.uri}: {where}", how.id_column))
        if how.id_column
        else entry
    )


def _size(cell: Any, where: str) -> int | None:
    """Return the number of bytes in a cell (12, "12", "12.0"); raises ValueError unless it is a whole number >= 0."""
    if is_empty(cell):
        return None
    match = re.fullmatch(r"\s*(\d+)(\.0*)?\s*", str(cell))
    if match is None:
        raise ValueError(f"{where}, column size_bytes: {cell!r}; allowed: a whole number of bytes")
    return int(match[1])


def _time(cell: Any, where: str) -> int | None:
    """Return the time in a cell as microseconds since 1970; raises ValueError for any other value."""
    try:
        return None if is_empty(cell) else microseconds(cell)
    except (ValueError, TypeError, AttributeError) as error:
        allowed = "allowed: ISO 8601, such as 2024-05-01T12:30:00Z"
        raise ValueError(f"{where}, column modified_at: {cell!r}; {allowed}") from error


def _choose(names: Sequence[str], how: InputOptions) -> _Columns:
    """Return the columns to read; raises ColumnError where no column or several columns could be the uri."""
    etag, size_bytes, modified_at = (next(iter(find_columns(names, [name])), None) for name in _VERSION_COLUMNS)
    own = chosen_column(names, how.id_column, "--id-column") if how.id_column else None
    return _Columns(image_column(names, how.uri_column, "uri"), etag, size_bytes, modified_at, own)


def _rows(batch: pa.RecordBatch, columns: _Columns) -> Iterator[Row]:
    none = [None] * len(batch)
    return zip(*[batch.column(name).to_pylist() if name else none for name in columns], strict=True)


def _read_csv(fs: AbstractFileSystem, manifest: Container, how: InputOptions) -> Iterator[Row]:
    parse = csv.ParseOptions(delimiter="\t" if suffix_of(manifest.path) == ".tsv" else ",", newlines_in_values=True)
    with fs.open(manifest.path, "rb") as file, csv.open_csv(file, parse_options=parse) as head:
        columns = _choose(head.schema.names, how)
    convert = csv.ConvertOptions(
        include_columns=columns.present,
        column_types=dict.fromkeys(columns.present, pa.string()),
        strings_can_be_null=True,
        null_values=[""],
    )
    with (
        fs.open(manifest.path, "rb") as file,
        csv.open_csv(file, parse_options=parse, convert_options=convert) as batches,
    ):
        for batch in batches:
            yield from _rows(batch, columns)


def _read_parquet(fs: AbstractFileSystem, manifest: Container, how: InputOptions) -> Iterator[Row]:
    with open_parquet(fs, manifest.path) as parquet:
        columns = _choose(parquet.schema_arrow.names, how)
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=columns.present):
            yield from _rows(batch, columns)


def _read_jsonl(fs: AbstractFileSystem, manifest: Container, how: InputOptions) -> Iterator[Row]:
    columns: _Columns | None = None
    with fs.open(manifest.path, "rb") as file:
        for number, line in enumerate(file, start=1):
            text = line.decode("utf-8-sig").strip("\r\n\t \0")
            if not text:
                continue
            try:
                value = parse_json(text)
            except ValueError as error:
                raise ValueError(f"line {number}: {getattr(error, 'msg', error)}") from error
            if not isinstance(value, dict):
                raise TypeError(f"line {number} is not a JSON object")
            columns = columns or _choose(list(value), how)
            yield tuple([value.get(name) if name else None for name in columns])


_READERS = {".csv": _read_csv, ".tsv": _read_csv}
