"""Feeds pictures to a process that trains: tasks of Ray Data, which load no network, fetch and decode in a given order.

Each process runs a dataset of its own over its share of the images. One dataset for all, split while it streams, would
hand out its blocks as they come: which images meet in a step would then depend on timing and on the number of
processes, and neither a resumed training nor one on more processes would repeat a curve.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.data import DataContext, Datasource, ExecutionResources, ReadTask
from ray.data.block import BlockMetadata

from pipeline.images.decode import DecodedImage, DecodeLimits
from pipeline.images.decoder import Decoder
from pipeline.images.resize import ResizePlan
from pipeline.storage.inputs.fetch import Fetcher
from schemas.config import StorageConfig
from schemas.errors import RejectedImage

PICTURES_PER_TASK = 32
PREFETCHED_BATCHES = 2


@dataclass(frozen=True)
class Pictures:
    """A batch: n images of the plan, in order, without those that can't be used."""

    numbers: NDArray[np.int64]
    """(n,) rows of the plan."""
    pixels: NDArray[np.uint8]
    """(n, D, D, 3) RGB."""
    sizes_hw: NDArray[np.int64]
    """(n, 2) height and width of the upright originals in pixels."""
    rejected: dict[int, tuple[str, str]]
    """Reason code and detail of the batch's other rows."""


@dataclass(frozen=True)
class PictureReader:
    """Fetches and decodes rows of a plan; a handful of plain values that travel to tasks."""

    storage: StorageConfig
    limits: DecodeLimits
    resize: ResizePlan

    def read_places(self, places: Any, plan: Any, order: Any) -> dict[str, NDArray[Any]]:
        """Return what ``read`` does for the places ``id`` of an order; plan and order are references to Ray's store."""
        return self.read(ray.get(plan), ray.get(order)[places["id"]])

    def read(self, plan: pa.Table, numbers: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return the arrays number, pixels (n, D, D, 3), size_hw (n, 2), reason_code and detail of some rows of a plan.

        Reason and detail are empty where there is a picture; what pixels and size of the others are is left open.
        """
        fetched = Fetcher(self.storage, self.limits.max_bytes).fetch(plan.take(numbers))
        side = self.resize.image_size
        pixels = np.zeros((len(numbers), side, side, 3), np.uint8)
        sizes_hw = np.zeros((len(numbers), 2), np.int64)

        def resized(place: int, image: DecodedImage) -> None:
            self.resize.apply(image.pixels, image.size_hw, pixels[place])
            sizes_hw[place] = image.size_hw

        blobs = [item if isinstance(item, bytes) else None for item in fetched]
        decoded = Decoder(self.limits, 1, self.resize.least_hw).map(blobs, resized)
        # What was never fetched has its own reason; the decoder only knows that no bytes came.
        ends = [own if isinstance(own, RejectedImage) else end for own, end in zip(fetched, decoded, strict=True)]
        return {
            "number": numbers,
            "pixels": pixels,
            "size_hw": sizes_hw,
            "reason_code": np.array([str(end.reason) if end else "" for end in ends], object),
            "detail": np.array([end.detail if end else "" for end in ends], object),
        }


@dataclass(frozen=True)
class Feed:
    """Where one process's pictures come from."""

    reader: PictureReader
    plan: Any
    """Reference to the plan in Ray's object store."""
    task_cpus: float
    cpus: float
    """Most CPUs that this process's tasks take together."""

    def batches(self, order: NDArray[np.int64], batch_size: int) -> Iterator[Pictures]:
        """Yield the rows ``order`` of the plan in batches, the last one shorter."""
        if not len(order):
            return
        blocks = -(-len(order) // PICTURES_PER_TASK)
        dataset = ray.data.read_datasource(_Places(len(order)), num_cpus=self.task_cpus, override_num_blocks=blocks)
        options = dataset.context.execution_options
        options.preserve_order = True
        options.resource_limits = ExecutionResources(cpu=self.cpus)
        pictures = dataset.map_batches(
            self.reader.read_places,
            batch_size=None,
            num_cpus=self.task_cpus,
            fn_kwargs={"plan": self.plan, "order": ray.put(order)},
        )
        for batch in pictures.iter_batches(batch_size=batch_size, prefetch_batches=PREFETCHED_BATCHES):
            yield _pictures(cast(dict[str, NDArray[Any]], batch))


class _Places(Datasource):
    """The numbers from 0 to ``n`` - 1 as the column id.

    ``ray.data.range`` asks for a whole CPU for each of its tasks. They would be tasks beside those that read pictures,
    and where the learning processes leave no machine a whole one, they would wait for ever.
    """

    def __init__(self, n: int) -> None:
        """Prepare no number yet."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._n = n

    def estimate_inmemory_data_size(self) -> int:
        """Return the bytes of all numbers."""
        return 8 * self._n

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """Return a task for each ``PICTURES_PER_TASK``, whatever the ``parallelism``."""
        starts = range(0, self._n, PICTURES_PER_TASK)
        return [self._task(start, min(PICTURES_PER_TASK, self._n - start), per_task_row_limit) for start in starts]

    def _task(self, start: int, count: int, row_limit: int | None) -> ReadTask:
        about = BlockMetadata(num_rows=count, size_bytes=8 * count, input_files=None, exec_stats=None)
        return ReadTask(
            lambda: [pa.table({"id": np.arange(start, start + count)})], about, per_task_row_limit=row_limit
        )


def _pictures(batch: dict[str, NDArray[Any]]) -> Pictures:
    good = batch["reason_code"] == ""
    rows = zip(batch["number"].tolist(), batch["reason_code"], batch["detail"], strict=True)
    rejected = {number: (str(reason), str(detail)) for number, reason, detail in rows if reason}
    return Pictures(batch["number"][good], batch["pixels"][good], batch["size_hw"][good], rejected)
