"""A source of Ray Data with given read tasks; Ray does not choose the number of blocks.

This module does not import torch, because the processes that read need none.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from pipeline.annotate.image_reader import ImageReader, encoded_bytes
from pipeline.annotate.reporter import RunProgress
from pipeline.storage.lake.plan.planning import PlanSlice
from pipeline.storage.patience import PATIENCE

Read = Callable[[], Iterable[pa.Table]]
"""The function of a read task: it returns the tables of the task's rows."""


class ReadTasks(Datasource):
    """Reads tables: Ray runs one task for each pair of a function and the function's number of rows."""

    def __init__(self, tasks: Sequence[tuple[Read, int]], schema: pa.Schema | None = None) -> None:
        """``schema``: the schema of all tables; None where it is not known before they are read."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._tasks, self._schema = tasks, schema

    def estimate_inmemory_data_size(self) -> int | None:
        """Return None: the bytes of the tables are not known before they are read."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Return the tasks; ``parallelism`` has no effect."""
        return [
            ReadTask(
                read,
                BlockMetadata(num_rows=rows, size_bytes=None, input_files=None, exec_stats=None),
                schema=self._schema,
                per_task_row_limit=per_task_row_limit,
            )
            for read, rows in self._tasks
        ]


def read_slices(reader: ImageReader, slices: Sequence[PlanSlice], progress: Any) -> Iterator[pa.Table]:
    """Yield the fetched tables of some slices, and report their bytes and the requests that were repeated for them.

    Nothing more is fetched once the run is asked to stop.
    """
    with PATIENCE.patient(progress.note.remote):
        if ray.get(progress.stopping.remote()):
            return
        for table in reader.read_slices(*slices):
            progress.add.remote(RunProgress(bytes_in=encoded_bytes(table), retries=PATIENCE.take_retries()))
            yield table
            if ray.get(progress.stopping.remote()):
                return
