"""The streaming plan on Ray Data: read → decode → annotate → commit."""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy
from ray.data.exceptions import ExecutionTimeoutError, SystemException
from torch import Tensor

from pipeline.graph.annotating import AnnotateSpec, AnnotateStage
from pipeline.graph.decoding import DecodeSpec, DecodeStage, decode_in_task
from pipeline.graph.gpu_decoding import GpuDecodeStage
from pipeline.graph.guard import Guard
from pipeline.graph.progress import Done, answer, following, start_tally
from pipeline.graph.resources import Compute
from pipeline.graph.sink import LakeSink
from pipeline.graph.source import ImageReader, PlannedImages
from pipeline.storage.commit import Committer
from pipeline.storage.planning import PlanSlice
from schemas import errors
from schemas.errors import CamlakeError


@dataclass(frozen=True)
class Job:
    """All that the stages need to know, in plain values that travel to every worker."""

    reader: ImageReader
    images_per_commit: int
    decode: DecodeSpec
    annotate: AnnotateSpec
    committer: Committer
    compute: Compute


def run_stream(
    slices: Sequence[PlanSlice], job: Job, state: dict[str, Tensor], advance: Callable[[int, int], None]
) -> Done:
    """Annotate the planned slices on the connected Ray and return what its actors did.

    Raises CamlakeError with one line for a failure that Ray's retries could not mend; what was committed by then stays.
    """
    compute = job.compute
    tally = start_tally()
    images = ray.data.read_datasource(
        PlannedImages(slices, job.reader), num_cpus=compute.read_cpus, override_num_blocks=len(slices)
    )
    if compute.decode == "remote":
        images = images.map_batches(
            functools.partial(decode_in_task, job.decode, tally),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=compute.decode_cpus,
        )
    rows = images.map_batches(
        Annotator,
        fn_constructor_args=(job, [ray.put(state)], tally),
        batch_size=compute.runtime.batch_size,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=_pool(compute),
        num_cpus=compute.actor_cpus,
        num_gpus=compute.gpus_per_actor,
    )

    def read() -> Done:
        done: Done = answer(tally.read)
        return done

    with following(read, lambda done: advance(done.images + done.rejected, done.rejected)):
        try:
            rows.write_datasink(
                LakeSink(job.committer, job.annotate.outputs, job.images_per_commit),
                ray_remote_args={"num_cpus": compute.write_cpus},
            )
            in_all: Done = ray.get(tally.read.remote())
        except (ray.exceptions.RayError, ExecutionTimeoutError) as error:
            raise in_one_line(error) from error
    return in_all


TABLES_AT_A_TIME = 2
"""Tables that an actor with a GPU works on, each in a thread: while one is in the network, Python has the other.

On CPU a second table would only take the core away from the first.
"""


def _pool(compute: Compute) -> ActorPoolStrategy:
    cuda = compute.runtime.device == "cuda"
    return ActorPoolStrategy(
        min_size=compute.actors[0],
        max_size=compute.actors[1],
        max_concurrent_calls_per_actor=TABLES_AT_A_TIME if cuda else None,
        enable_true_multi_threading=cuda,
    )


class Annotator:
    """The actor: loads the network once, then turns tables of images into wide rows. Threads may call it."""

    def __init__(self, job: Job, state: Any, tally: Any) -> None:
        """``state`` holds the reference to the network's weights, one copy a node in Ray's object store."""
        self._tally, self._guard = tally, Guard(tally)
        self._failure: CamlakeError | None = None
        try:
            self._annotate = AnnotateStage(job.annotate, ray.get(state[0]))
            self._decode = _decoding_beside_the_network(job)
        except CamlakeError as error:
            self._failure = error  # for the first call: of a failed constructor Ray only says that the actor died

    def __call__(self, images: pa.Table) -> pa.Table:
        """Annotate one table of images, fetched or decoded; raises what the network could not be loaded for."""
        if self._failure:
            raise self._failure
        rows = self._guard.run(images, self._stages)
        rejected = len(rows) - rows["reason_code"].null_count
        self._tally.add.remote(len(rows) - rejected, rejected, self._annotate.busy.lap_s())
        return rows

    def _stages(self, images: pa.Table) -> pa.Table:
        return self._annotate.annotate(*self._decode(images))


def _decoding_beside_the_network(job: Job) -> Callable[[pa.Table], tuple[pa.Table, Tensor | None]]:
    """Return what an actor does to a table before it annotates it: (decoded, its pixels where they are on the GPU)."""
    compute = job.compute
    if compute.decode == "gpu":
        return GpuDecodeStage(job.decode, compute.runtime.device, compute.decode_threads)
    if compute.decode == "local":
        stage = DecodeStage(job.decode, compute.decode_threads)
        return lambda fetched: (stage(fetched), None)
    return lambda decoded: (decoded, None)


def in_one_line(error: Exception) -> CamlakeError:
    """Return the first cause of a failure inside Ray, which wraps it several times."""
    cause: BaseException = error
    while (inner := getattr(cause, "cause", None) or cause.__cause__) and not isinstance(inner, SystemException):
        cause = inner
    if isinstance(cause, CamlakeError):
        return cause
    # Of what a stage raised Ray Data hands on the text alone.
    told = re.findall(r"^schemas\.errors\.(\w+): (.+)$", str(error), re.MULTILINE)
    if told:
        kind, message = told[-1]
        raised: CamlakeError = getattr(errors, kind)(message)
        return raised
    text = str(cause).strip().splitlines()
    return CamlakeError(f"{type(cause).__name__}: {text[0] if text else 'no message'} (--debug shows where)")
