"""The graph on Ray Data: read → decode → annotate → commit."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy
from ray.data.exceptions import ExecutionTimeoutError
from torch import Tensor

from pipeline.annotate.annotate_stage import AnnotateStage
from pipeline.annotate.crash_isolation import CrashIsolation
from pipeline.annotate.decode_stage import DecodeStage, decode_in_task
from pipeline.annotate.gpu_decode_stage import GpuDecodeStage
from pipeline.annotate.image_reader import FETCHED
from pipeline.graph.annotate.datasink import LakeSink
from pipeline.graph.annotate.job import Job
from pipeline.graph.progress import ActorAttempts, RunProgress, answer, following, start_progress
from pipeline.graph.ray_errors import in_one_line
from pipeline.graph.read_tasks import ReadTasks
from pipeline.graph.resources import Compute
from pipeline.storage.lake.planning import PlanSlice
from schemas.errors import CamlakeError


def run_stream(
    slices: Sequence[PlanSlice], job: Job, state: dict[str, Tensor], advance: Callable[[int, int], None]
) -> RunProgress:
    """Annotate the planned slices on the connected Ray and return the sums over all actors.

    ``state`` has the network's weights. ``advance`` gets the numbers of images done and of rejected images, twice a
    second. Raises CamlakeError with one line where Ray's retries do not help; earlier commits stay.
    """
    compute = job.compute
    progress = start_progress()
    reads = [(functools.partial(job.reader.read_slice, one), one.rows) for one in slices]
    images = ray.data.read_datasource(
        ReadTasks(reads, FETCHED), num_cpus=compute.read_cpus, override_num_blocks=len(slices)
    )
    if compute.decode == "remote":
        images = images.map_batches(
            functools.partial(decode_in_task, job.decode, ActorAttempts(progress)),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=compute.decode_cpus,
        )
    rows = images.map_batches(
        Annotator,
        fn_constructor_args=(job, [ray.put(state)], progress),
        batch_size=compute.runtime.batch_size,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=_pool(compute),
        num_cpus=compute.actor_cpus,
        num_gpus=compute.gpus_per_actor,
    )

    def read() -> RunProgress:
        done: RunProgress = answer(progress.read)
        return done

    with following(read, lambda done: advance(done.images + done.rejected, done.rejected)):
        try:
            rows.write_datasink(
                LakeSink(job.committer, job.annotate.outputs, job.images_per_commit, job.annotate.every_map_has_a_box),
                ray_remote_args={"num_cpus": compute.write_cpus},
            )
            total: RunProgress = ray.get(progress.read.remote())
        except (ray.exceptions.RayError, ExecutionTimeoutError) as error:
            raise in_one_line(error) from error
    return total


def _pool(compute: Compute) -> ActorPoolStrategy:
    threaded = compute.calls > 1
    return ActorPoolStrategy(
        min_size=compute.actors[0],
        max_size=compute.actors[1],
        max_concurrent_calls_per_actor=compute.calls if threaded else None,
        enable_true_multi_threading=threaded,
    )


class Annotator:
    """The actor: loads the network once, then turns tables of images into wide rows. Threads may call it."""

    def __init__(self, job: Job, state: Any, progress: Any) -> None:
        """``state`` holds the reference to the network's weights: Ray's object store has one copy on each machine."""
        self._progress, self._isolation = progress, CrashIsolation(ActorAttempts(progress))
        self._failure: CamlakeError | None = None
        try:
            self._annotate = AnnotateStage(job.annotate, ray.get(state[0]))
            self._decode = _decoding_beside_the_network(job)
        except CamlakeError as error:
            self._failure = error  # The first call raises it; Ray reports a failed constructor only as a dead actor.

    def __call__(self, images: pa.Table) -> pa.Table:
        """Return wide rows for a table of fetched or decoded images; raises the error of a network that can't load."""
        if self._failure:
            raise self._failure
        rows = self._isolation.run(images, self._stages)
        rejected = len(rows) - rows["reason_code"].null_count
        self._progress.add.remote(len(rows) - rejected, rejected, self._annotate.busy.lap_s())
        return rows

    def _stages(self, images: pa.Table) -> pa.Table:
        return self._annotate.annotate(*self._decode(images))


def _decoding_beside_the_network(job: Job) -> Callable[[pa.Table], tuple[pa.Table, Tensor | None]]:
    """Return the function with which an actor decodes a table; it returns the decoded table and pixels on the GPU.

    The pixels are None where they are not on the GPU. Where tasks decode, the function returns the table unchanged.
    """
    compute = job.compute
    if compute.decode == "gpu":
        return GpuDecodeStage(job.decode, compute.runtime.device, compute.decode_threads)
    if compute.decode == "local":
        stage = DecodeStage(job.decode, compute.decode_threads)
        return lambda fetched: (stage(fetched), None)
    return lambda decoded: (decoded, None)
