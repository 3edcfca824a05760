"""Manifests: tables that name images by uri, as CSV, JSON Lines or Parquet."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
from fsspec import AbstractFileSystem
from pyarrow import csv

from pipeline.storage.filesystems import Stores
from pipeline.storage.inputs.containers import open_parquet, suffix_of
from pipeline.storage.inputs.entries import Container, Entry, named_entry, with_versions
from pipeline.storage.inputs.versions import Version, microseconds
from schemas.errors import InputError
from schemas.reasons import Reason

MANIFEST_SUFFIXES = frozenset({".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"})
_URI_COLUMNS = ("uri", "url", "path", "file", "image_path")
_VERSION_COLUMNS = ("etag", "size_bytes", "modified_at")
_BATCH_ROWS = 10_000

Row = tuple[Any, Any, Any, Any]
"""uri, etag, size_bytes and modified_at as the manifest has them; None where it has none."""


class _Columns(NamedTuple):
    uri: str
    versions: tuple[str | None, ...]

    @property
    def present(self) -> list[str]:
        return [self.uri, *(name for name in self.versions if name)]


def has_uris(names: Sequence[str]) -> bool:
    """Tell whether one of the columns can be the uri."""
    return any(name.lower() in _URI_COLUMNS for name in names)


def list_manifest(fs: AbstractFileSystem, manifest: Container, stores: Stores) -> Iterator[Entry]:
    """Yield one entry a row, in order, with what the manifest does not say of its version filled in by the store.

    Relative uris lie in the manifest's folder. A row without uri is an entry with the reason ``missing_uri``. Raises
    InputError for a manifest that can't be parsed, or in which no column or several could be the uri.
    """
    return with_versions(_named(fs, manifest, stores), stores)


def _named(fs: AbstractFileSystem, manifest: Container, stores: Stores) -> Iterator[Entry]:
    read = {".csv": _read_csv, ".tsv": _read_csv, ".parquet": _read_parquet}.get(suffix_of(manifest.path), _read_jsonl)
    try:
        for row, (uri, etag, size_bytes, modified_at) in enumerate(read(fs, manifest)):
            text = "" if uri is None else str(uri)
            if not text.strip():
                missing = f"{manifest.uri}#row={row}"
                yield Entry(missing, manifest.path, reason=Reason.MISSING_URI, detail=f"row {row} has no uri")
                continue
            size = None if size_bytes is None else int(size_bytes)
            version = Version(str(etag).strip('"') if etag else None, size, microseconds(modified_at))
            yield named_entry(text, manifest, row, stores, version)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise InputError(f"manifest {manifest.uri}: {str(error).strip().splitlines()[0][:300]}") from error


def _choose(names: Sequence[str], manifest: Container) -> _Columns:
    lower = {name.lower(): name for name in reversed(names)}
    found = ["uri"] if "uri" in lower else [name for name in _URI_COLUMNS if name in lower]
    if len(found) != 1:
        problem = f"no column uri; it has {', '.join(names)}" if not found else f"which is the uri: {', '.join(found)}?"
        raise InputError(f"manifest {manifest.uri}: {problem}")
    return _Columns(lower[found[0]], tuple(lower.get(name) for name in _VERSION_COLUMNS))


def _rows(batch: pa.RecordBatch, columns: _Columns) -> Iterator[Row]:
    none = [None] * len(batch)
    values = [batch.column(name).to_pylist() if name else none for name in (columns.uri, *columns.versions)]
    return zip(*values, strict=True)


def _read_csv(fs: AbstractFileSystem, manifest: Container) -> Iterator[Row]:
    parse = csv.ParseOptions(delimiter="\t" if suffix_of(manifest.path) == ".tsv" else ",", newlines_in_values=True)
    with fs.open(manifest.path, "rb") as file, csv.open_csv(file, parse_options=parse) as head:
        columns = _choose(head.schema.names, manifest)
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


def _read_parquet(fs: AbstractFileSystem, manifest: Container) -> Iterator[Row]:
    with open_parquet(fs, manifest.path) as parquet:
        columns = _choose(parquet.schema_arrow.names, manifest)
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=columns.present):
            yield from _rows(batch, columns)


def _read_jsonl(fs: AbstractFileSystem, manifest: Container) -> Iterator[Row]:
    columns: _Columns | None = None
    with fs.open(manifest.path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line.decode("utf-8-sig"))
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}: {error.msg}") from error
            if not isinstance(value, dict):
                raise TypeError(f"line {number} is not a JSON object")
            columns = columns or _choose(list(value), manifest)
            yield (value.get(columns.uri), *(value.get(name) if name else None for name in columns.versions))  # type: ignore[misc]
