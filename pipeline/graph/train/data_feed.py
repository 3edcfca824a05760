"""Feeds pictures to a process that trains: tasks of Ray Data fetch and decode images in a given order.

Each process runs one dataset over its share of the images. One dataset for all processes, split while it streams, would
give out blocks in the order of their arrival. The images of a step would then depend on timing and on the number of
processes, so that a resumed training, or a training with more processes, would not repeat a curve.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.data import ExecutionResources

from pipeline.graph.read_tasks import ReadTasks
from pipeline.images.decode import DecodedImage, DecodeLimits
from pipeline.images.decode_pool import DecodePool
from pipeline.images.resize import ResizePlan
from pipeline.storage.inputs.fetch import Fetcher
from schemas.errors import RejectedImage
from schemas.options.config import StorageConfig

PICTURES_PER_TASK = 32
PREFETCHED_BATCHES = 2


@dataclass(frozen=True)
class TrainBatch:
    """A batch: the n images that could be used, in order, and the reasons for the images that could not be used."""

    numbers: NDArray[np.int64]
    """(n,) the images' rows in the table of images."""
    pixels: NDArray[np.uint8]
    """(n, D, D, 3) RGB."""
    sizes_hw: NDArray[np.int64]
    """(n, 2) height and width of the upright originals in pixels."""
    rejected: dict[int, tuple[str, str]]
    """Reason code and detail of the images that could not be used, by their rows in the table of images."""


@dataclass(frozen=True)
class PictureReader:
    """Fetches and decodes images; it has plain values only, which Ray copies to tasks."""

    storage: StorageConfig
    limits: DecodeLimits
    resize: ResizePlan

    def read_numbers(self, rows: Any, images: Any) -> dict[str, NDArray[Any]]:
        """Return ``read`` of the column number of ``rows``; ``images`` is a reference into Ray's object store."""
        return self.read(ray.get(images), rows["number"])

    def read(self, images: pa.Table, numbers: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return number (n,), pixels (n, D, D, 3), size_hw (n, 2), reason_code (n,) and detail (n,) of some images.

        ``numbers`` are rows of the table ``images``. Reason and detail are empty strings for an image that can be used;
        pixels and size of the other images have no meaning.
        """
        fetched = Fetcher(self.storage, self.limits.max_bytes).fetch(images.take(numbers))
        side = self.resize.image_size
        pixels = np.zeros((len(numbers), side, side, 3), np.uint8)
        sizes_hw = np.zeros((len(numbers), 2), np.int64)

        def resized(place: int, image: DecodedImage) -> None:
            self.resize.apply(image.pixels, image.size_hw, pixels[place])
            sizes_hw[place] = image.size_hw

        blobs = [item if isinstance(item, bytes) else None for item in fetched]
        decoded = DecodePool(self.limits, 1, self.resize.least_hw).map(blobs, resized)
        # The reason of an image that was not fetched comes from the fetcher; the decoder only got no bytes.
        rejected = [
            not_fetched if isinstance(not_fetched, RejectedImage) else not_decoded
            for not_fetched, not_decoded in zip(fetched, decoded, strict=True)
        ]
        return {
            "number": numbers,
            "pixels": pixels,
            "size_hw": sizes_hw,
            "reason_code": np.array([str(each.reason) if each else "" for each in rejected], object),
            "detail": np.array([each.detail if each else "" for each in rejected], object),
        }


@dataclass(frozen=True)
class Feed:
    """Yields the pictures of one process."""

    reader: PictureReader
    images: Any
    """Reference to the table of images in Ray's object store."""
    task_cpus: float
    cpus: float
    """Most CPUs that all tasks of this process take together."""

    def batches(self, order: NDArray[np.int64], batch_size: int) -> Iterator[TrainBatch]:
        """Yield the rows ``order`` of the table of images in batches; the last batch may be shorter."""
        if not len(order):
            return
        # ray.data.range asks for a whole CPU for each task, and would wait without end where no machine has one free.
        parts = [order[start : start + PICTURES_PER_TASK] for start in range(0, len(order), PICTURES_PER_TASK)]
        reads = [(partial(_numbers, part), len(part)) for part in parts]
        dataset = ray.data.read_datasource(ReadTasks(reads), num_cpus=self.task_cpus, override_num_blocks=len(reads))
        options = dataset.context.execution_options
        options.preserve_order = True
        options.resource_limits = ExecutionResources(cpu=self.cpus)
        pictures = dataset.map_batches(
            self.reader.read_numbers, batch_size=None, num_cpus=self.task_cpus, fn_kwargs={"images": self.images}
        )
        for batch in pictures.iter_batches(batch_size=batch_size, prefetch_batches=PREFETCHED_BATCHES):
            yield _pictures(cast(dict[str, NDArray[Any]], batch))


def _numbers(part: NDArray[np.int64]) -> list[pa.Table]:
    return [pa.table({"number": part})]


def _pictures(batch: dict[str, NDArray[Any]]) -> TrainBatch:
    good = batch["reason_code"] == ""
    rows = zip(batch["number"].tolist(), batch["reason_code"], batch["detail"], strict=True)
    rejected = {number: (str(reason), str(detail)) for number, reason, detail in rows if reason}
    return TrainBatch(batch["number"][good], batch["pixels"][good], batch["size_hw"][good], rejected)
