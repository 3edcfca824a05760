"""Compares the files of an output with the records of its runs: sizes, footers, schemas and digests."""

import hashlib
import io
import re
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipeline.storage.lake.empty_tables import damaged_empty_files
from pipeline.storage.lake.layout import DATA_NAME, HIDDEN_NAME, LakePaths
from pipeline.storage.lake.records import committed_files, digest_of
from pipeline.storage.lake.whole_objects import REQUESTS_AT_ONCE, read_many
from pipeline.storage.store_failures import store_errors
from schemas.runs import Compaction, DataFile, RunManifest
from schemas.tables import TABLES

_NAMED_DIGEST = re.compile(r"-([0-9a-f]{8})\.parquet$")
"""The digest in the name of a data file."""


_BLOCK_BYTES = 8 * 2**20
"""Bytes of a file in memory at a time; s3fs would take 50 MiB for each of REQUESTS_AT_ONCE files."""


def damaged_files(
    fs: AbstractFileSystem, paths: LakePaths, files: Sequence[DataFile], listed: dict[str, int]
) -> dict[str, str]:
    """Return the problem of each committed file that is missing or differs from its record, by the file's path.

    ``listed`` has the size in bytes of each existing file. Every file is read completely, for its digest.
    """

    def problem(file: DataFile) -> str | None:
        if file.path not in listed:
            return f"{file.path}: committed, but gone"
        if listed[file.path] != file.size_bytes:
            return f"{file.path}: {listed[file.path]} bytes, but {file.size_bytes} were committed"
        return _content_problem(fs, paths, file)

    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        found = zip(files, pool.map(problem, files), strict=True)
    return {file.path: text for file, text in found if text}


def _content_problem(fs: AbstractFileSystem, paths: LakePaths, file: DataFile) -> str | None:
    with (
        store_errors(f"{file.path} can't be read"),
        fs.open(paths.full(file.path), "rb", block_size=_BLOCK_BYTES) as source,
    ):
        changed = _is_changed(source, file)
        source.seek(0)
        try:
            footer = pq.ParquetFile(source)
            rows, schema = footer.metadata.num_rows, footer.schema_arrow
        except pa.ArrowInvalid as error:
            return f"{file.path}: no readable Parquet file: {str(error).splitlines()[0]}"
        except OSError:  # Arrow raises it for a damaged footer; for unchanged content it is a failure of the store.
            if not changed:
                raise
            return f"{file.path}: no readable Parquet file"
    if rows != file.rows:
        return f"{file.path}: {rows} rows, but {file.rows} were committed"
    if odd := TABLES[file.table].odd_columns(schema):
        return f"{file.path}: columns that are missing or of another type: {', '.join(odd)}"
    return f"{file.path}: its content has changed since it was committed" if changed else None


def _is_changed(source: io.BufferedIOBase, file: DataFile) -> bool:
    """Return whether the content's digest differs from the digest in the record, or else in the file's name."""
    named = _NAMED_DIGEST.search(file.path)
    recorded = file.digest or (named and named[1])
    if not recorded:
        return False
    digest = hashlib.file_digest(source, lambda: hashlib.blake2b(digest_size=len(recorded) // 2))
    return digest.hexdigest() != recorded


def damaged_plans(fs: AbstractFileSystem, root: str, plans: Sequence[DataFile]) -> dict[str, str]:
    """Return the problem of each file of a plan that can't be read, by its path."""
    found, paths = {}, LakePaths(root)
    for file, data in zip(plans, read_many(fs, [paths.full(file.path) for file in plans]), strict=True):
        try:
            pq.read_table(pa.BufferReader(data or b""), columns=["image_id", "uri"])
        except (pa.ArrowException, OSError) as error:
            found[file.path] = f"{file.path}: the plan can't be read: {str(error).splitlines()[0]}"
    return found


def changed_empty_files(fs: AbstractFileSystem, root: str) -> list[str]:
    """Return the problems of files without rows that are not as they were written."""
    return [f"{path}: its content has changed since it was written" for path in damaged_empty_files(fs, root)]


def damaged_dropped(fs: AbstractFileSystem, root: str, compactions: Sequence[Compaction]) -> dict[str, str]:
    """Return the problem of each list of dropped endings that is not as it was written, by its path."""
    files = [one.dropped for one in compactions if one.dropped]
    contents = read_many(fs, [LakePaths(root).full(file.path) for file in files])
    digests = [digest_of(data or b"") for data in contents]
    return {
        file.path: f"{file.path}: the list of dropped rows is lost or has changed"
        for file, digest in zip(files, digests, strict=True)
        if digest != file.digest
    }


def misplaced_files(
    runs: Sequence[RunManifest],
    listed: dict[str, int],
    lost: Collection[str] = (),
    compactions: Sequence[Compaction] = (),
) -> list[str]:
    """Return the problems of files that no run committed, that are committed twice, or that lie in a wrong folder.

    ``lost`` are the ids of runs without a readable manifest, whose files can't be judged. Files that a compaction
    replaced may still be there.
    """
    replaced = {path for one in compactions for path in one.replaced_files}
    merged = {file.path for one in compactions for file in one.files}
    named = Counter(file.path for file in committed_files(runs))
    problems = [
        f"{path}: no run committed this file; {_end_of_stray(path)}"
        for path in sorted(listed)
        if path not in named and path not in replaced and not _is_of(path, lost)
    ]
    problems += [f"{path}: committed {times} times" for path, times in named.items() if times > 1]
    for run in runs:
        for file in run.files:
            own = f"{file.table}/model={run.model}/date="
            place = own if file.path in merged else f"{own}{run.date}/part-{run.run_id}-"
            if not file.path.startswith(place):
                problems.append(f"{file.path}: no place for table {file.table} of run {run.run_id}")
    return problems


def _end_of_stray(path: str) -> str:
    name = path.rpartition("/")[2]
    is_own = DATA_NAME.fullmatch(name) or HIDDEN_NAME.fullmatch(name)
    return "the next run removes it" if is_own else "camlake did not write it, remove it by hand"


def _is_of(path: str, run_ids: Collection[str]) -> bool:
    named = DATA_NAME.fullmatch(path.rpartition("/")[2])
    return named is not None and named[1] in run_ids
