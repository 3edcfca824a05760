"""The start of the Ray Data graph: one read task for each slice of the plan. These tasks load no network."""

import functools
from collections.abc import Sequence
from typing import Any

from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from pipeline.annotate.reader import FETCHED, ImageReader
from pipeline.storage.lake.planning import PlanSlice


class PlannedImages(Datasource):
    """Reads planned inputs with their encoded bytes (FETCHED), one task for each slice."""

    def __init__(self, slices: Sequence[PlanSlice], reader: ImageReader) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._slices, self._reader = slices, reader

    def estimate_inmemory_data_size(self) -> int | None:
        """Return None: the size of the images is not known before they are read."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Return one task for each slice; ``parallelism`` has no effect."""
        return [
            ReadTask(
                functools.partial(self._reader.read_slice, one),
                BlockMetadata(num_rows=one.rows, size_bytes=None, input_files=None, exec_stats=None),
                schema=FETCHED,
                per_task_row_limit=per_task_row_limit,
            )
            for one in self._slices
        ]
