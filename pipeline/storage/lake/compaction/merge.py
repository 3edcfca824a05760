"""Merges commits into one: the rows of their files, table by table, without those of dropped endings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from fsspec import AbstractFileSystem

from pipeline.storage.lake.encoding import from_parquet, to_parquet
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.records import digest_of
from pipeline.storage.lake.whole_objects import read_whole, write_whole
from schemas.runs import CommitRecord, DataFile
from schemas.tables import TABLES


@dataclass(frozen=True)
class Dropped:
    """The dropped endings of one model: the ids of their images by run."""

    ids: Mapping[str, pa.Array]

    @classmethod
    def of(cls, endings: pa.Table) -> "Dropped":
        """Return the endings of a table of the schema DROPPED."""
        runs = endings["run_id"].unique().to_pylist()
        rows = {run_id: endings.filter(pc.equal(endings["run_id"], run_id)) for run_id in runs}
        return cls({run_id: own["image_id"].combine_chunks() for run_id, own in rows.items()})

    def kept(self, rows: pa.Table) -> pa.Table:
        """Return the rows of a data file that are of no dropped ending."""
        for run_id in rows["run_id"].unique().to_pylist():
            if run_id in self.ids:
                gone = pc.and_(pc.equal(rows["run_id"], run_id), pc.is_in(rows["image_id"], self.ids[run_id]))
                rows = rows.filter(pc.invert(gone))
        return rows


def merged_commit(
    fs: AbstractFileSystem,
    root: str,
    compaction_id: str,
    task: str,
    group: Sequence[CommitRecord],
    dropped: Dropped,
) -> CommitRecord | None:
    """Write the files of the commit that replaces ``group``, and return its record; None where no row is left.

    One table at a time is in memory. Rows of files with other columns, which another version wrote, get a file of their
    own. Raises StoreError.
    """
    files: list[DataFile] = []
    for table, spec in TABLES.items():
        own = [file for commit in group for file in commit.files if file.table == table]
        same: list[list[pa.Table]] = []
        for file in own:
            rows = dropped.kept(from_parquet(read_whole(fs, LakePaths(root).full(file.path)), file.path))
            if not same or not same[-1][0].schema.equals(rows.schema, check_metadata=True):
                same.append([])
            same[-1].append(rows)
        folder = own[0].path.rpartition("/")[0] if own else ""
        for part in same:
            if rows := _sorted(part, spec.order):
                path = f"{folder}/.part-{compaction_id}-{task}"
                files.append(_write(fs, root, table, path, to_parquet(rows), len(rows)))
    return CommitRecord.of(compaction_id, task, files) if files else None


def _sorted(parts: Sequence[pa.Table], order: Sequence[str]) -> pa.Table | None:
    rows = pa.concat_tables(parts)
    return rows.take(pc.sort_indices(rows, [(name, "ascending") for name in order])) if len(rows) else None


def _write(fs: AbstractFileSystem, root: str, table: str, path: str, data: bytes, rows: int) -> DataFile:
    digest = digest_of(data)
    path = f"{path}-{digest[:8]}.parquet.compacted"
    write_whole(fs, LakePaths(root).full(path), data)
    return DataFile(table=table, path=path, rows=rows, size_bytes=len(data), digest=digest)
