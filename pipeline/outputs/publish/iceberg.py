"""The work of ``camlake publish``: an Iceberg table that has the current rows of an output.

The committed files themselves are registered; no row is copied but those of files with superseded rows, of which the
table gets a copy without them, beside its metadata. Iceberg's readers take the partition's ``model`` and ``date`` from
the metadata, because the files don't have these columns.
"""

import importlib.util
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipeline.outputs.publish.states import CurrentFile, current_files, states_after
from pipeline.outputs.reader import ALL_MODELS, open_lake
from pipeline.outputs.sql.sql_views import chosen_model
from pipeline.storage.filesystems import canonical_url, connect, is_local
from pipeline.storage.lake.compaction.merge import Dropped
from pipeline.storage.lake.encoding import to_parquet
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.records import committed_files
from pipeline.storage.lake.whole_objects import read_whole
from schemas.errors import StoreError, UsageError
from schemas.options.publish import PublishConfig
from schemas.runs import RunManifest
from schemas.url_secrets import safe_url

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.manifest import DataFile as IcebergFile
    from pyiceberg.table import Table as IcebergTable

_RUN, _SOURCE = "camlake.run-id", "camlake.source"
"""The run of a snapshot, in its summary; what a table is made from, in its properties."""
_PROPERTIES = {
    "commit.retry.num-retries": "0",  # A second publisher at the same time would add the same files once more.
    "gc.enabled": "false",  # Engines must not delete files that belong to the output.
}
_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that was added to the table."""

    run_id: str
    added: int
    """Files."""
    removed: int
    rows: int
    """Rows of the table after it."""


def publish(config: PublishConfig, say: Callable[[str], None]) -> list[Snapshot]:
    """Make the table equal to the output's current rows, and return the snapshots that this took; none where it is.

    Only runs that have ended are published. Raises UsageError without the extra, for a table of other rows and for a
    catalog that refuses, StoreError where there is no output.
    """
    if any(importlib.util.find_spec(name) is None for name in ("pyiceberg", "sqlalchemy")):
        raise UsageError("publish: pyiceberg is not installed; `pip install 'camlake[iceberg]'`")
    from pyiceberg import exceptions  # noqa: PLC0415 - an optional extra
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    of_iceberg = [one for one in vars(exceptions).values() if isinstance(one, type) and issubclass(one, Exception)]
    refusals: tuple[type[Exception], ...] = (*of_iceberg, SQLAlchemyError, ValueError)
    with open_lake(config.out, config, config.model or ALL_MODELS) as lake:
        model = chosen_model(lake, config.out, config.model)
        runs = [run for run in lake.runs if model in (ALL_MODELS, run.model) and run.status != "running"]
    fs, root = connect(config.out, config)
    try:
        with _checksums_where_required():
            return _Publication(config, fs, root, model).bring(runs, say)
    except refusals as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"--catalog {safe_url(config.catalog)}, --table {config.table}: {reason}") from error


@contextmanager
def _checksums_where_required() -> Iterator[None]:
    """Let pyiceberg's clients send checksums only where S3 requires them, as camlake's do; the user's choice stays."""
    name = "AWS_REQUEST_CHECKSUM_CALCULATION"
    if name in os.environ:
        yield
        return
    os.environ[name] = "when_required"
    try:
        yield
    finally:
        del os.environ[name]


class _Publication:
    """One table of one output on its way into one table of a catalog."""

    def __init__(self, config: PublishConfig, fs: AbstractFileSystem, root: str, model: str) -> None:
        self._config, self._fs, self._root = config, fs, root
        self._url = canonical_url(config.out).rstrip("/")
        self._source = f"{self._url} {config.of} {model}"

    def bring(self, runs: Sequence[RunManifest], say: Callable[[str], None]) -> list[Snapshot]:
        """Add the snapshots that are missing."""
        files = committed_files(runs, self._config.of)
        if not files:
            raise UsageError(f"--of {self._config.of}: {safe_url(self._config.out)} has no such rows yet")
        table = self._table(self._schema(files[-1].path))
        last = table.current_snapshot()
        published = last.summary.additional_properties.get(_RUN) if last and last.summary else None
        done = []
        known = {task.file.file_path for task in table.scan().plan_files()}
        published_paths = {file.path for file in files if self._own_location(file.path) in known}
        for state in states_after(self._fs, self._root, runs, published, published_paths):
            say(f"run {state[-1].run_id}: comparing its files with the table's")
            if snapshot := self._snapshot(table, state):
                done.append(snapshot)
        return done

    def _catalog(self) -> "Catalog":
        from pyiceberg.catalog import load_catalog  # noqa: PLC0415

        config = self._config
        given: dict[str, str] = {}
        if config.is_uri:
            given = {"uri": config.catalog, "warehouse": str(config.warehouse)}
            given["py-io-impl"] = "pyiceberg.io.fsspec.FsspecFileIO"  # Ceph refuses Arrow's uploads.
        if config.endpoint_url:
            given["s3.endpoint"] = config.endpoint_url
        if config.profile:
            given["s3.profile-name"] = config.profile
        return load_catalog("camlake" if config.is_uri else config.catalog, **given)

    def _table(self, schema: pa.Schema) -> "IcebergTable":
        """Return the table, made where it is missing; raises UsageError where it holds other rows."""
        catalog, name = self._catalog(), self._config.table
        if not catalog.table_exists(name):
            catalog.create_namespace_if_not_exists(name.rpartition(".")[0])
            properties = _PROPERTIES | {_SOURCE: self._source}
            with catalog.create_table_transaction(name, schema, properties=properties) as made:
                mapping = made.table_metadata.schema().name_mapping.model_dump_json()
                made.set_properties({"schema.name-mapping.default": mapping})
                with made.update_spec() as spec:
                    spec.add_identity("model").add_identity("date")
        table = catalog.load_table(name)
        source = table.properties.get(_SOURCE)
        if source != self._source:
            raise UsageError(
                f"--table {name}: it holds {source or 'rows that camlake did not publish'}, not {self._source};"
                " allowed: another name"
            )
        new = [one.with_nullable(True) for one in schema if one.name not in table.schema().column_names]
        if new:  # A newer camlake writes more columns; the older rows have no value there.
            with table.update_schema() as change:
                change.union_by_name(pa.schema(new))
        return table

    def _schema(self, path: str) -> pa.Schema:
        columns = self._footer(path).schema.to_arrow_schema()
        return pa.schema([*columns, pa.field("model", pa.string()), pa.field("date", pa.date32())])

    def _footer(self, path: str) -> pq.FileMetaData:
        """Return a file's metadata; raises UsageError for half floats and StoreError where the file is missing."""
        try:
            with self._fs.open(LakePaths(self._root).full(path)) as file:
                footer = pq.read_metadata(file)
        except FileNotFoundError as error:
            raise StoreError(f"{path} is missing; `camlake verify` says what else") from error
        for one in footer.schema.to_arrow_schema():
            if pa.types.is_fixed_size_list(one.type) and one.type.value_type == pa.float16():
                raise UsageError(f"--of {self._config.of}: Iceberg has no type for the half floats of {one.name}")
        return footer

    def _snapshot(self, table: "IcebergTable", state: Sequence[RunManifest]) -> Snapshot | None:
        """Add the snapshot that gives the table the rows of a state; None where it has them."""
        wanted = {}
        for one in current_files(self._fs, self._root, state, self._config.of):
            wanted[self._location(table, one)] = one
        there = {task.file.file_path: task.file for task in table.scan().plan_files()}
        gone = [file for location, file in there.items() if location not in wanted]
        new = [self._described(table, location, one) for location, one in wanted.items() if location not in there]
        if not new and not gone:
            return None
        with table.transaction() as change:
            update = change.update_snapshot(snapshot_properties={_RUN: state[-1].run_id})
            with update.overwrite() if gone else update.fast_append() as producer:
                for file in new:
                    producer.append_data_file(file)
                for file in gone:
                    producer.delete_data_file(file)
        table.refresh()
        rows = sum(task.file.record_count for task in table.scan().plan_files())
        return Snapshot(state[-1].run_id, len(new), len(gone), rows)

    def _location(self, table: "IcebergTable", one: CurrentFile) -> str:
        if one.superseded is not None:
            return f"{table.location().rstrip('/')}/data/{one.copy_name}"
        return self._own_location(one.file.path)

    def _own_location(self, path: str) -> str:
        protocol = "file://" if is_local(self._fs) else ""
        return f"{protocol}{self._url}/{path}"

    def _described(self, table: "IcebergTable", location: str, one: CurrentFile) -> "IcebergFile":
        """Return Iceberg's entry for a file; a copy without superseded rows is written first."""
        from pyiceberg.io.pyarrow import (  # noqa: PLC0415
            compute_statistics_plan,
            data_file_statistics_from_parquet_metadata,
            parquet_path_to_id_mapping,
        )
        from pyiceberg.manifest import DataFile, DataFileContent, FileFormat  # noqa: PLC0415
        from pyiceberg.typedef import Record  # noqa: PLC0415

        footer, size = self._footer(one.file.path), one.file.size_bytes
        if one.superseded is not None:
            data = read_whole(self._fs, LakePaths(self._root).full(one.file.path)) or b""
            data = to_parquet(Dropped.of(one.superseded).kept(pq.read_table(io.BytesIO(data))))
            with table.io.new_output(location).create(overwrite=True) as sink:
                sink.write(data)
            footer, size = pq.read_metadata(io.BytesIO(data)), len(data)
        schema = table.schema()
        statistics = data_file_statistics_from_parquet_metadata(
            parquet_metadata=footer,
            stats_columns=compute_statistics_plan(schema, table.properties),
            parquet_column_mapping=parquet_path_to_id_mapping(schema),
        )
        model, day = (part.partition("=")[2] for part in one.file.path.split("/")[1:3])
        return DataFile.from_args(
            content=DataFileContent.DATA,
            file_path=location,
            file_format=FileFormat.PARQUET,
            partition=Record(model, (date.fromisoformat(day) - _EPOCH).days),
            file_size_in_bytes=size,
            sort_order_id=None,
            spec_id=table.metadata.default_spec_id,
            equality_ids=None,
            key_metadata=None,
            **statistics.to_serialized_dict(),
        )
