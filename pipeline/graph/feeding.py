"""Feeds pictures to a process that trains: Ray Data fetches and decodes them elsewhere, in a given order.

Each process runs a dataset of its own over its share of the images. One dataset for all, split while it streams, would
hand out its blocks as they come: which images meet in a step would then depend on timing and on the number of
processes, and neither a resumed training nor one on more processes would repeat a curve.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.data import ExecutionResources

from pipeline.graph.decoding import DecodeSpec, DecodeStage
from pipeline.storage.fetch import Fetcher
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
    rejected: dict[int, tuple[str, str]]
    """Reason code and detail of the batch's other rows."""


@dataclass(frozen=True)
class PictureReader:
    """Fetches and decodes rows of a plan; a handful of plain values that travel to tasks."""

    storage: StorageConfig
    spec: DecodeSpec

    def __call__(self, rows: dict[str, NDArray[Any]], plan: pa.Table, order: NDArray[np.int64]) -> dict[str, Any]:
        """Return numbers, pixels (black where there are none), reason codes and details of places ``id`` of ``order``."""
        numbers = order[rows["id"]]
        fetched = Fetcher(self.storage, self.spec.limits.max_bytes).fetch(plan.take(numbers))
        blobs = [item if isinstance(item, bytes) else None for item in fetched]
        results, pixels = DecodeStage(self.spec).decode(blobs)
        # What was never fetched has its reason already; without bytes the decoder gives one of its own.
        ends = [first if isinstance(first, RejectedImage) else second for first, second in zip(fetched, results, strict=True)]
        side = self.spec.resize.image_size
        whole = np.zeros((len(numbers), side, side, 3), np.uint8)
        whole[[not isinstance(result, RejectedImage) for result in results]] = pixels
        rejections = [end if isinstance(end, RejectedImage) else None for end in ends]
        return {
            "number": numbers,
            "pixels": whole,
            "reason_code": np.array([str(each.reason) if each else "" for each in rejections], object),
            "detail": np.array([each.detail if each else "" for each in rejections], object),
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
        dataset = ray.data.range(len(order), override_num_blocks=blocks)
        options = dataset.context.execution_options
        options.preserve_order = True
        options.resource_limits = ExecutionResources(cpu=self.cpus)
        pictures = dataset.map_batches(
            self.reader,
            batch_size=None,
            num_cpus=self.task_cpus,
            fn_kwargs={"plan": self.plan, "order": ray.put(order)},
        )
        for batch in pictures.iter_batches(batch_size=batch_size, prefetch_batches=PREFETCHED_BATCHES):
            good = batch["reason_code"] == ""
            rows = zip(batch["number"].tolist(), batch["reason_code"], batch["detail"], strict=True)
            rejected = {number: (str(reason), str(detail)) for number, reason, detail in rows if reason}
            yield Pictures(batch["number"][good], batch["pixels"][good], rejected)
