"""The last step of the Ray Data graph: tasks commit wide rows as tables."""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
from ray.data import Datasink

from pipeline.annotate.commit_stage import CommitStage
from pipeline.storage.patience import PATIENCE
from schemas.runs import CommitRecord


class LakeSink(Datasink[CommitRecord | None]):
    """Commits wide rows; each write task makes one commit record."""

    def __init__(self, commit: CommitStage, progress: Any) -> None:
        """``progress``: the run's ProgressActor, which gets a line where the store fails for long."""
        self._commit, self._progress = commit, progress

    @property
    def min_rows_per_write(self) -> int:
        """The number of images of one commit."""
        return self._commit.images_per_commit

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> CommitRecord | None:
        """Write one commit and return its record; None without rows. A task that Ray retries writes the same names."""
        with PATIENCE.patient(self._progress.note.remote):
            return self._commit(ctx.task_idx, list(blocks))
