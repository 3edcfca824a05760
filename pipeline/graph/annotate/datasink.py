"""The last step of the Ray Data graph: tasks commit wide rows as tables. These tasks load no network."""

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
from ray.data import Datasink

from pipeline.storage.lake.commit import Committer
from pipeline.storage.lake.rows import count_maps_without_box, split_rows
from schemas.runs import CommitRecord


class LakeSink(Datasink[CommitRecord | None]):
    """Commits wide rows; each write task makes one commit record."""

    def __init__(
        self, committer: Committer, outputs: Sequence[str], images_per_commit: int, every_map_has_a_box: bool = False
    ) -> None:
        self._committer, self._outputs, self._images_per_commit = committer, outputs, images_per_commit
        self._every_map_has_a_box = every_map_has_a_box

    @property
    def min_rows_per_write(self) -> int:
        """The number of images of one commit."""
        return self._images_per_commit

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> CommitRecord | None:
        """Write one commit and return its record; None without rows. A task that Ray retries writes the same names."""
        parts = [block for block in blocks if len(block)]
        if not parts:
            return None
        rows = pa.concat_tables(parts)
        tables = split_rows(rows, self._committer.run_id, self._outputs)
        without_box = 0 if self._every_map_has_a_box else count_maps_without_box(rows)
        return self._committer.commit(f"{ctx.task_idx:06d}", tables, without_box)
