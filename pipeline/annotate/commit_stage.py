"""The last stage: commits wide rows as tables. A process that only commits never imports torch."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.storage.lake.commit import Committer
from pipeline.storage.lake.rows import count_maps_without_box, split_rows
from schemas.runs import CommitRecord


@dataclass(frozen=True)
class CommitStage:
    """Commits wide rows (see pipeline.storage.lake.rows); Ray can send it to every machine."""

    committer: Committer
    outputs: tuple[str, ...]
    images_per_commit: int
    every_map_has_a_box: bool
    """Whether the rows need no look for maps without a box, see AnnotateSpec."""

    def __call__(self, index: int, parts: Sequence[pa.Table]) -> CommitRecord | None:
        """Commit wide rows as the run's commit ``index`` and return its record; None without rows.

        The same rows with the same ``index`` give files of the same names.
        """
        filled = [part for part in parts if len(part)]
        if not filled:
            return None
        rows = pa.concat_tables(filled)
        tables = split_rows(rows, self.committer.run_id, self.outputs)
        without_box = 0 if self.every_map_has_a_box else count_maps_without_box(rows)
        return self.committer.commit(f"{index:06d}", tables, without_box)
