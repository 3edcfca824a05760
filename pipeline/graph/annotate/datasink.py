"""The last step of the Ray Data graph: tasks commit wide rows as tables."""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
from ray.data import Datasink

from pipeline.annotate.commit_stage import commit_rows
from pipeline.annotate.job import Job
from pipeline.storage.patience import PATIENCE
from schemas.runs import CommitRecord


class LakeSink(Datasink[CommitRecord | None]):
    """Commits wide rows; each write task makes one commit record."""

    def __init__(self, job: Job, progress: Any) -> None:
        """``progress``: the run's ProgressActor, which gets a line where the store fails for long."""
        self._job, self._progress = job, progress

    @property
    def min_rows_per_write(self) -> int:
        """The number of images of one commit."""
        return self._job.images_per_commit

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> CommitRecord | None:
        """Write one commit and return its record; None without rows. A task that Ray retries writes the same names."""
        with PATIENCE.patient(self._progress.note.remote):
            return commit_rows(self._job, ctx.task_idx, list(blocks))
