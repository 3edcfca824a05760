"""Compares the files of an output with what its runs recorded: listings, footers and schemas, not yet the rows."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.records import committed_files
from pipeline.storage.lake.whole_objects import REQUESTS_AT_ONCE
from pipeline.storage.store_failures import store_errors
from schemas.runs import DataFile, RunManifest
from schemas.tables import TABLES


def damaged_files(
    fs: AbstractFileSystem, layout: LakePaths, files: Sequence[DataFile], listed: dict[str, int]
) -> dict[str, str]:
    """Return path → problem of each committed file that is gone, of another size, or holds other than recorded."""

    def problem(file: DataFile) -> str | None:
        if file.path not in listed:
            return f"{file.path}: committed, but gone"
        if listed[file.path] != file.size_bytes:
            return f"{file.path}: {listed[file.path]} bytes, but {file.size_bytes} were committed"
        return _footer_problem(fs, layout, file)

    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        found = zip(files, pool.map(problem, files), strict=True)
    return {file.path: text for file, text in found if text}


def _footer_problem(fs: AbstractFileSystem, layout: LakePaths, file: DataFile) -> str | None:
    with store_errors(f"{file.path} can't be read"), fs.open(layout.full(file.path), "rb") as source:
        try:
            footer = pq.ParquetFile(source)
            rows, schema = footer.metadata.num_rows, footer.schema_arrow
        except pa.ArrowInvalid as error:
            return f"{file.path}: no readable Parquet file: {str(error).splitlines()[0]}"
    if rows != file.rows:
        return f"{file.path}: {rows} rows, but {file.rows} were committed"
    odd = TABLES[file.table].odd_columns(schema)
    return f"{file.path}: columns that are missing or of another type: {', '.join(odd)}" if odd else None


def misplaced_files(runs: Sequence[RunManifest], listed: dict[str, int]) -> list[str]:
    """Return the problems of files that lie where they should not: strays, named twice, or in another run's place."""
    named = Counter(file.path for file in committed_files(runs))
    problems = [f"{path}: no run committed this file" for path in sorted(listed) if path not in named]
    problems += [f"{path}: committed {times} times" for path, times in named.items() if times > 1]
    for run in runs:
        for file in run.files:
            if not file.path.startswith(f"{file.table}/model={run.model}/date={run.date}/part-{run.run_id}-"):
                problems.append(f"{file.path}: no place for table {file.table} of run {run.run_id}")
    return problems
