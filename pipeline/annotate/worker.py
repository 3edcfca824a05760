"""A worker: decodes and annotates tables of images, and finds the images that kill it. Both engines run it."""

from collections.abc import Callable
from typing import NamedTuple

import pyarrow as pa
from torch import Tensor

from pipeline.annotate.annotate_stage import AnnotateStage, BusyClock
from pipeline.annotate.crash_isolation import Attempts, CrashIsolation
from pipeline.annotate.decode_stage import DecodeStage
from pipeline.annotate.gpu_decode_stage import GpuDecodeStage
from pipeline.annotate.job import Job
from pipeline.annotate.reporter import RunProgress


class Worked(NamedTuple):
    """The wide rows of a table of images, and what the table adds to the progress of the run."""

    rows: pa.Table
    progress: RunProgress


class Worker:
    """Loads the network once, then turns tables of images into wide rows. Threads may call it."""

    def __init__(self, job: Job, state: dict[str, Tensor], attempts: Attempts) -> None:
        """``state`` has the network's weights. Raises CamlakeError where the network can't be loaded."""
        self._isolation, self._decodes = CrashIsolation(attempts), job.compute.decode != "remote"
        self._annotate = AnnotateStage(job.annotate, state)
        self._decode, self._decoding = decoding_beside_the_network(job), BusyClock()

    def __call__(self, images: pa.Table) -> Worked:
        """Return the rows of a table of fetched images, or of decoded images where other processes decode."""
        rows = self._isolation.run(images, self._stages)
        rejected = len(rows) - rows["reason_code"].null_count
        progress = RunProgress(
            len(rows) - rejected,
            rejected,
            busy_s=self._annotate.busy.lap_s(),
            decode_s=self._decoding.lap_s() if self._decodes else 0.0,
            notes=self._annotate.memory.take_notes(),
        )
        return Worked(rows, progress)

    def _stages(self, images: pa.Table) -> pa.Table:
        with self._decoding:
            decoded = self._decode(images)
        return self._annotate.annotate(*decoded)


def decoding_beside_the_network(job: Job) -> Callable[[pa.Table], tuple[pa.Table, Tensor | None]]:
    """Return the function with which a worker decodes a table; it returns the decoded table and pixels on the GPU.

    The pixels are None where they are not on the GPU. Where tasks decode, the function returns the table unchanged.
    """
    compute = job.compute
    if compute.decode == "gpu":
        return GpuDecodeStage(job.decode, compute.runtime.device, compute.decode_threads)
    if compute.decode == "local":
        stage = DecodeStage(job.decode, compute.decode_threads)
        return lambda fetched: (stage(fetched), None)
    return lambda decoded: (decoded, None)
