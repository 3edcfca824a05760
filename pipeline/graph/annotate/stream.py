"""The graph on Ray Data: read → decode → annotate → commit."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy
from ray.data.exceptions import ExecutionTimeoutError
from torch import Tensor

from pipeline.annotate.crash_isolation import TRIES, died_at_start
from pipeline.annotate.decode_stage import decode_in_task
from pipeline.annotate.image_reader import FETCHED, joined_slices
from pipeline.annotate.job import Job
from pipeline.annotate.model import Model
from pipeline.annotate.reporter import Reporter, RunProgress
from pipeline.annotate.resources import Compute, images_of_block, worth_tuning
from pipeline.annotate.stopping import stop_requested
from pipeline.annotate.worker import Worker
from pipeline.graph.annotate.datasink import LakeSink
from pipeline.graph.cluster import ray_cluster
from pipeline.graph.progress import ActorAttempts, answer, following, start_progress
from pipeline.graph.ray_errors import in_one_line
from pipeline.graph.read_tasks import ReadTasks, read_slices
from pipeline.graph.scale_from_zero import with_gpus
from pipeline.graph.tuning.autotune import resolve_compute
from pipeline.graph.tuning.bench import sample_plan
from pipeline.storage.lake.plan.planning import Plan, PlanSlice
from pipeline.storage.lake.run import OpenRun
from pipeline.storage.patience import PATIENCE
from schemas.errors import CamlakeError
from schemas.options.annotate import AnnotateConfig


@contextmanager
def planned_on_ray(
    config: AnnotateConfig, model: Model, run: OpenRun, plan: Plan, reporter: Reporter, tune_from: int
) -> Iterator[Compute]:
    """Connect to Ray during the block, and yield where the stages of the run run, measured where the run is long."""
    with ray_cluster(config.address) as cluster:
        machine = with_gpus(cluster, config.device, config.gpus_per_actor, reporter.say)
        if worth_tuning(config, plan.to_do, tune_from):
            reporter.say("trying for a few seconds what is fastest here")
        sample = partial(sample_plan, plan.slices, run.fs, run.root)
        yield resolve_compute(config, model, machine, plan.slices, sample, tune_from)


def run_stream(
    slices: Sequence[PlanSlice],
    job: Job,
    state: dict[str, Tensor],
    follow: Callable[[RunProgress], None],
) -> RunProgress:
    """Annotate the planned slices on the connected Ray and return the sums over all actors.

    ``state`` has the network's weights. ``follow`` gets the sums so far, twice a second. Raises CamlakeError with one
    line where Ray's retries do not help; earlier commits stay. Raises Stopped after a signal, when the tables that the
    actors had begun are committed, or when that takes too long: with thousands of blocks to go Ray starts a task for
    each of them, though it does nothing any more.
    """
    compute = job.compute
    progress = start_progress()
    groups = joined_slices(slices, images_of_block(compute, sum(one.rows for one in slices)))
    reads = [(partial(read_slices, job.reader, group, progress), sum(one.rows for one in group)) for group in groups]
    images = ray.data.read_datasource(
        ReadTasks(reads, FETCHED), num_cpus=compute.read_cpus, override_num_blocks=len(reads)
    )
    if compute.decode == "remote":
        images = images.map_batches(
            partial(decode_in_task, job.decode, ActorAttempts(progress)),
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

    def end() -> None:
        """Give the main thread the second signal, which ends what is at work."""
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def read() -> RunProgress:
        if stop.is_set():
            progress.stop.remote()
        done: RunProgress = answer(progress.read)
        return done

    with stop_requested(end) as stop, following(read, follow):
        try:
            rows.write_datasink(
                LakeSink(job.commit, progress),
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
    """The actor: a worker of the run, which the driver's ProgressActor counts."""

    def __init__(self, job: Job, state: Any, progress: Any) -> None:
        """``state`` holds the reference to the network's weights: Ray's object store has one copy on each machine."""
        self._progress = progress
        self._failure: CamlakeError | None = None
        attempts, key = ActorAttempts(progress), f"start of {ray.get_runtime_context().get_actor_id()}"
        try:
            if attempts.begin(key) > TRIES:  # Ray would start it again without end.
                raise died_at_start()
            self._work = Worker(job, ray.get(state[0]), attempts)
        except CamlakeError as error:
            self._failure = error  # The first call raises it; Ray reports a failed constructor only as a dead actor.
        attempts.finish(key)

    def __call__(self, images: pa.Table) -> pa.Table:
        """Return wide rows for a table of fetched or decoded images; raises the error of a network that can't load."""
        if self._failure:
            raise self._failure
        if ray.get(self._progress.stopping.remote()):
            images = images.slice(0, 0)
        worked = self._work(images)
        self._progress.add.remote(worked.progress._replace(retries=PATIENCE.take_retries()))
        return worked.rows
