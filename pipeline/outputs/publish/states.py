"""The files with which a table of another catalog has exactly the current rows of an output."""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pyarrow as pa
from fsspec import AbstractFileSystem

from pipeline.storage.lake.layout import HIDDEN_NAME
from pipeline.storage.lake.query import committed_views, file_urls, quote_list
from pipeline.storage.lake.records import committed_files, load_compactions, shown_path
from schemas.runs import DataFile, RunManifest
from schemas.tables import Table

_ROWS = (
    "read_parquet({urls}, filename = true, hive_partitioning = true, hive_types = {{'model': VARCHAR, 'date': DATE}})"
)
_SUPERSEDED_SQL = f"""SELECT DISTINCT filename, run_id, image_id FROM {_ROWS}
ANTI JOIN latest USING (model, image_id, run_id) ORDER BY ALL"""
_FILES_SQL = f"SELECT DISTINCT filename FROM {_ROWS} SEMI JOIN latest USING (model, image_id, run_id)"
"""The files that have current rows."""


@dataclass(frozen=True)
class CurrentFile:
    """A committed file, and which of its rows no longer count."""

    file: DataFile
    superseded: pa.Table | None = None
    """The columns run_id and image_id of the rows that a later run replaced, each pair once; None: all rows count."""

    @property
    def copy_name(self) -> str:
        """Return the name of the copy without the superseded rows; other superseded rows give another name."""
        name = self.file.path.rpartition("/")[2]
        stem = (shown_path(name) if HIDDEN_NAME.fullmatch(name) else name).removesuffix(".parquet").lstrip(".")
        pairs = "\n".join(map(str, self.superseded.to_pylist())) if self.superseded is not None else ""
        return f"{stem}-{hashlib.blake2b(pairs.encode(), digest_size=8).hexdigest()}.parquet"


def current_files(fs: AbstractFileSystem, root: str, runs: Sequence[RunManifest], table: Table) -> list[CurrentFile]:
    """Return the files of a table that have current rows, as they are after the last of ``runs``."""
    files = [file for file in committed_files(runs, table) if file.rows]
    if not files:
        return []
    by_url = dict(zip(file_urls(fs, root, files, table), files, strict=True))
    urls = quote_list(list(by_url))
    with committed_views(fs, root, committed_files(runs)) as con:
        found = con.sql(_SUPERSEDED_SQL.format(urls=urls)).to_arrow_table()
        current = {url for (url,) in con.sql(_FILES_SQL.format(urls=urls)).fetchall()}
    superseded: dict[str, list[int]] = defaultdict(list)
    for place, url in enumerate(found["filename"].to_pylist()):
        superseded[url].append(place)
    keys = found.select(["run_id", "image_id"])
    return [
        CurrentFile(file, keys.take(superseded[url]) if url in superseded else None)
        for url, file in by_url.items()
        if url in current
    ]


def states_after(
    fs: AbstractFileSystem, root: str, runs: Sequence[RunManifest], published: str | None, known: Collection[str]
) -> list[list[RunManifest]]:
    """Return the runs up to each run that is to become a snapshot, the last one being all of ``runs``.

    ``published`` is the run of the last snapshot, ``known`` the paths of the files that the table has. The first
    snapshot holds all runs, and each later run makes one. A compaction since then has dropped rows that were current
    after a run in between, so all runs since then become one snapshot.
    """
    ids = [run.run_id for run in runs]
    merged = {file.path for one in load_compactions(fs, root) for file in one.files}
    compacted = any(file.path in merged and file.path not in known for run in runs for file in run.files)
    if published not in ids or compacted:
        return [list(runs)]
    return [list(runs[:end]) for end in range(ids.index(published) + 2, len(runs) + 1)] or [list(runs)]
