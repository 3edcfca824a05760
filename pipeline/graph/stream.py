"""The streaming plan on Ray Data: read → decode → annotate → commit."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy, Datasink, Datasource, ReadTask
from ray.data.block import BlockMetadata
from ray.data.exceptions import ExecutionTimeoutError, SystemException
from torch import Tensor

from pipeline.graph.guard import Guard
from pipeline.graph.progress import Done, following, start_tally
from pipeline.graph.resources import Compute
from pipeline.graph.stages import FETCHED, AnnotateSpec, AnnotateStage, DecodeSpec, DecodeStage
from pipeline.storage.commit import Committer
from pipeline.storage.fetch import Fetcher, read_plan_slice
from pipeline.storage.filesystems import connect
from pipeline.storage.planning import PlanSlice
from pipeline.storage.rows import count_maps_without_box, split_rows
from schemas.config import StorageConfig
from schemas.errors import CamlakeError, RejectedImage
from schemas.runs import CommitRecord

UNKNOWN_BYTES = 4 * 2**20
"""What an object of unknown size counts for."""
FETCH_BYTES = 64 * 2**20
"""Encoded bytes that a read task holds at a time: a slice of large photographs is fetched in several tables."""


@dataclass(frozen=True)
class Job:
    """All that the stages need to know, in plain values that travel to every worker."""

    reader: "ImageReader"
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
            functools.partial(_decode, job.decode, tally),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=compute.decode_cpus,
        )
    rows = images.map_batches(
        Annotator,
        fn_constructor_args=(job, [ray.put(state)], tally),
        batch_size=compute.batch_size,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ActorPoolStrategy(min_size=compute.actors[0], max_size=compute.actors[1]),
        num_cpus=compute.actor_cpus,
        num_gpus=compute.gpus_per_actor,
    )
    with following(tally, advance) as done:
        try:
            rows.write_datasink(LakeSink(job), ray_remote_args={"num_cpus": compute.write_cpus})
        except (ray.exceptions.RayError, ExecutionTimeoutError) as error:
            raise _in_one_line(error) from error
    return done()


class PlannedImages(Datasource):
    """Reads planned inputs with their encoded bytes: one task a slice."""

    def __init__(self, slices: Sequence[PlanSlice], reader: "ImageReader") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._slices, self._reader = slices, reader

    def estimate_inmemory_data_size(self) -> int | None:
        """Return None: what the images weigh is not known before they are read."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Return one task for each slice, whatever the parallelism."""
        return [
            ReadTask(
                functools.partial(self._reader.read_slice, one),
                BlockMetadata(num_rows=one.rows, size_bytes=None, input_files=None, exec_stats=None),
                schema=FETCHED,
                per_task_row_limit=per_task_row_limit,
            )
            for one in self._slices
        ]


@dataclass(frozen=True)
class ImageReader:
    """Fetches planned images; a handful of plain values, because Ray keeps one copy for each read task."""

    storage: StorageConfig
    out: str
    max_bytes: int

    def read_slice(self, one: PlanSlice) -> Iterator[pa.Table]:
        """Yield the images of a slice (FETCHED), in tables that a worker's memory can take."""
        fs, root = connect(self.out, self.storage)
        plan = read_plan_slice(fs, root, one)
        size_bytes = pc.fill_null(plan["size_bytes"], UNKNOWN_BYTES).to_numpy()
        part_of = np.cumsum(size_bytes) // FETCH_BYTES
        for part in np.unique(part_of):
            rows = np.flatnonzero(part_of == part)
            yield self.fetch(plan.slice(rows[0], len(rows)))

    def fetch(self, plan: pa.Table) -> pa.Table:
        """Return planned inputs (PLAN) with their encoded bytes (FETCHED), or why they can't be fetched."""
        fetched = Fetcher(self.storage, self.max_bytes).fetch(plan)
        rejections = [item if isinstance(item, RejectedImage) else None for item in fetched]
        columns = {name: plan[name] for name in plan.schema.names}
        columns["reason_code"] = pa.array([str(item.reason) if item else None for item in rejections], pa.string())
        columns["detail"] = pa.array([item.detail if item else None for item in rejections], pa.string())
        blobs = [None if isinstance(item, RejectedImage) else item for item in fetched]
        columns["data"] = pa.array(blobs, pa.large_binary())
        return pa.table({name: columns[name] for name in FETCHED.names}, schema=FETCHED)


@functools.cache
def _decoder(spec: DecodeSpec) -> DecodeStage:
    return DecodeStage(spec)


def _decode(spec: DecodeSpec, tally: Any, fetched: pa.Table) -> pa.Table:
    return Guard(tally).run(fetched, _decoder(spec))


class Annotator:
    """The actor: loads the network once, then turns tables of images into wide rows."""

    def __init__(self, job: Job, state: Any, tally: Any) -> None:
        """``state`` holds the reference to the network's weights, one copy a node in Ray's object store."""
        self._annotate = AnnotateStage(job.annotate, ray.get(state[0]))
        self._decode = DecodeStage(job.decode) if job.compute.decode == "local" else None
        self._tally, self._guard = tally, Guard(tally)

    def __call__(self, images: pa.Table) -> pa.Table:
        """Annotate one table of images, fetched or decoded."""
        before_s = self._annotate.busy_s
        rows = self._guard.run(images, self._stages)
        rejected = len(rows) - rows["reason_code"].null_count
        self._tally.add.remote(len(rows) - rejected, rejected, self._annotate.busy_s - before_s)
        return rows

    def _stages(self, images: pa.Table) -> pa.Table:
        return self._annotate(self._decode(images) if self._decode else images)


class LakeSink(Datasink[CommitRecord | None]):
    """Commits wide rows: one write task, one commit record."""

    def __init__(self, job: Job) -> None:
        self._job = job

    @property
    def min_rows_per_write(self) -> int:
        """Images whose rows become part of the output together."""
        return self._job.images_per_commit

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> CommitRecord | None:
        """Write one commit; a retried task writes the same names again."""
        parts = [block for block in blocks if len(block)]
        if not parts:
            return None
        rows = pa.concat_tables(parts)
        job = self._job
        tables = split_rows(rows, job.committer.run_id, job.annotate.outputs)
        return job.committer.commit(f"{ctx.task_idx:06d}", tables, count_maps_without_box(rows))


def _in_one_line(error: Exception) -> CamlakeError:
    """Return the first cause of a failure inside Ray, which wraps it several times."""
    cause: BaseException = error
    while (inner := getattr(cause, "cause", None) or cause.__cause__) and not isinstance(inner, SystemException):
        cause = inner
    if isinstance(cause, CamlakeError):
        return cause
    text = str(cause).strip().splitlines()
    return CamlakeError(f"{type(cause).__name__}: {text[0] if text else 'no message'} (--debug shows where)")
