"""The last stage: commits wide rows as tables. It loads no network."""

from collections.abc import Sequence

import pyarrow as pa

from pipeline.annotate.job import Job
from pipeline.storage.lake.rows import count_maps_without_box, split_rows
from schemas.runs import CommitRecord


def commit_rows(job: Job, index: int, parts: Sequence[pa.Table]) -> CommitRecord | None:
    """Commit wide rows as the run's commit ``index`` and return its record; None without rows.

    The same rows with the same ``index`` give files of the same names.
    """
    filled = [part for part in parts if len(part)]
    if not filled:
        return None
    rows = pa.concat_tables(filled)
    tables = split_rows(rows, job.committer.run_id, job.annotate.outputs)
    without_box = 0 if job.annotate.every_map_has_a_box else count_maps_without_box(rows)
    return job.committer.commit(f"{index:06d}", tables, without_box)
