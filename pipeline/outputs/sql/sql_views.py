"""An output in DuckDB for SQL that others wrote: the SQL can read the views and nothing else, and write nothing.

Only a single SELECT is run. DuckDB's access to files is closed, apart from the committed files and those that the user
joins, and the settings are locked. So a query can't reach another file, the network or the settings, and no function
that it calls can write into the output.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import duckdb
import pyarrow as pa

from pipeline.outputs.reader import ALL_MODELS, Lake, open_lake
from pipeline.storage.filesystems import connect, is_local
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.query import PROTOCOL, quote, quote_list
from pipeline.storage.lake.records import committed_files
from pipeline.storage.lake.whole_objects import read_whole
from schemas.columns import TIMESTAMP
from schemas.errors import CamlakeError, InputError, StoreError, UsageError
from schemas.options.config import StorageConfig
from schemas.options.sql import SqlConfig
from schemas.runs import Counts, RunManifest
from schemas.tables import TABLES
from schemas.url_secrets import safe_url

_READERS = {".csv": "read_csv", ".tsv": "read_csv", ".parquet": "read_parquet", ".pq": "read_parquet"}
_READERS |= {".json": "read_json", ".jsonl": "read_json", ".ndjson": "read_json"}
_COUNTED = ("listed", "already_done", "planned", "annotated", "rejected", "boxes", "maps_without_box")
"""The counts of a run that the view ``runs`` has."""


@contextmanager
def open_views(config: SqlConfig) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open the views that a query may name: those of the tables, ``runs``, and the files of ``--join``.

    Raises StoreError where there is no output, UsageError where the model must be named, InputError where a joined file
    can't be read.
    """
    with ExitStack() as stack:
        lake = stack.enter_context(open_lake(config.out, config, config.model or ALL_MODELS))
        model = chosen_model(lake, config.out, config.model)
        con = lake.connection()
        add_runs(con, [run for run in lake.runs if model in (ALL_MODELS, run.model)])
        fs, root = connect(config.out, config, anonymous=config.anonymous)
        allowed = [LakePaths(root).full(file.path) for file in committed_files(lake.runs)] if is_local(fs) else []
        for name, url in config.joined.items():
            path = stack.enter_context(_local_copy(url, config))
            _add_file(con, name, url, path)
            allowed.append(path)
        close_to_all_but(con, allowed)
        yield con


def chosen_model(lake: Lake, out: str, model: str | None) -> str:
    """Return the model whose rows are meant, or ``*``; raises UsageError where several are there and none is named."""
    if model is None and len(lake.models) > 1:
        raise UsageError(
            f"--model is missing: {safe_url(out)} has {', '.join(lake.models)}; allowed: one of them, or '*' for"
            " the rows of all, which the column model tells apart"
        )
    return model or (lake.models[0] if lake.models else ALL_MODELS)


def close_to_all_but(con: duckdb.DuckDBPyConnection, paths: list[str]) -> None:
    """Close DuckDB's access to files but those of ``paths`` and of camlake's own file system; lock the settings."""
    con.execute(f"SET allowed_paths = {quote_list(paths)}")
    con.execute(f"SET allowed_directories = [{quote(f'{PROTOCOL}://')}]")
    con.execute("SET enable_external_access = false")
    con.execute("SET lock_configuration = true")


def add_runs(con: duckdb.DuckDBPyConnection, runs: list[RunManifest]) -> None:
    """Make the table ``runs``: a row for each run with its times, counts, model and settings."""
    rows = [
        {
            "run_id": run.run_id,
            "model": run.model,
            "date": run.date,
            "status": run.status,
            "started_at": run.started_at,
            "ended_at": run.ended_at,
            "input": str(run.config.get("input", "")),
            **{name: getattr(run.counts, name) for name in _COUNTED},
            "camlake_version": run.lineage.camlake_version,
            "weights": run.lineage.weights,
            "settings": json.dumps(run.settings, sort_keys=True),
        }
        for run in runs
    ]
    times, numbers = {"started_at", "ended_at"}, set(_COUNTED) & set(Counts.model_fields)
    names = ["run_id", "model", "date", "status", "started_at", "ended_at", "input", *_COUNTED]
    names += ["camlake_version", "weights", "settings"]
    kinds = [TIMESTAMP if name in times else pa.int64() if name in numbers else pa.string() for name in names]
    con.register("rows_of_runs", pa.Table.from_pylist(rows, pa.schema(list(zip(names, kinds, strict=True)))))
    con.execute("CREATE TABLE runs AS SELECT * REPLACE (date::DATE AS date) FROM rows_of_runs")
    con.unregister("rows_of_runs")


def _add_file(con: duckdb.DuckDBPyConnection, name: str, url: str, path: str) -> None:
    reader = _READERS.get(Path(path).suffix)
    if reader is None:
        raise UsageError(f"--join {name}={safe_url(url)}: allowed: a file that ends with {', '.join(_READERS)}")
    if name in {*TABLES, "runs"}:
        raise UsageError(f"--join {name}={safe_url(url)}: allowed: another name; {name} is a table of the output")
    try:
        con.execute(f'CREATE VIEW "{name}" AS SELECT * FROM {reader}({quote_list([path])})')
    except duckdb.Error as error:
        raise InputError(f"--join {name}={safe_url(url)}: can't be read: {one_line(error)}") from error


@contextmanager
def _local_copy(url: str, storage: StorageConfig) -> Iterator[str]:
    """Yield the path of a file on this machine; a file elsewhere is fetched and its copy removed at the end."""
    fs, path = connect(url, storage)
    if is_local(fs):
        if not Path(path).is_file():
            raise InputError(f"--join {safe_url(url)}: no such file")
        yield path
        return
    content = read_whole(fs, path)
    if content is None:
        raise InputError(f"--join {safe_url(url)}: no such file")
    with tempfile.TemporaryDirectory(prefix="camlake-sql-") as folder:
        copy = Path(folder, f"joined{Path(urlsplit(url).path).suffix}")
        copy.write_bytes(content)
        yield str(copy)


def one_select(con: duckdb.DuckDBPyConnection, query: str) -> duckdb.DuckDBPyRelation:
    """Return the result of ``query`` as a relation; raises UsageError unless it is one valid statement that reads."""
    try:
        statements = con.extract_statements(query)
        kinds = [statement.type for statement in statements]
        if kinds != [duckdb.StatementType.SELECT]:
            said = ", ".join(kind.name for kind in kinds) or "no statement"
            raise UsageError(f"SQL: {said}; allowed: one SELECT, because an output is only read")
        return con.sql(statements[0].query)
    except duckdb.Error as error:
        raise failure_of(error) from error


def failure_of(error: Exception) -> CamlakeError:
    """Return the failure of a query as an error of the SQL, or as one of the store where a file can't be read.

    For a file that is cut off DuckDB names it, and what is no Parquet inside of a page is an Error of no kind, or an
    "Invalid Error" while rows stream.
    """
    line = one_line(error)
    of_no_kind = type(error) is duckdb.Error or line.startswith("Invalid Error: ")
    if of_no_kind or isinstance(error, duckdb.IOException) or ".parquet'" in line:
        return StoreError(f"a file can't be read: {line}; `camlake verify` says what is damaged")
    return UsageError(f"SQL: {line}")


def one_line(error: Exception) -> str:
    """Return the message of an error of DuckDB or Arrow in one line, without the drawing of the query."""
    lines = [line.strip() for line in str(error).splitlines()]
    drawing = next((place for place, line in enumerate(lines) if line.startswith("LINE ")), len(lines))
    return " ".join(line for line in lines[:drawing] if line)
