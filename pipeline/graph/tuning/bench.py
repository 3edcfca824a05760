"""Times the stages on a sample of a run's images, in actors and tasks with the same resources as those of the run.

As many actors work at the same time as at the start of the run, so the figures include how actors slow each other down.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from fsspec import AbstractFileSystem

from pipeline.annotate.image_reader import ImageReader
from pipeline.annotate.model import Model
from pipeline.annotate.resources import Compute, Machine, decoders
from pipeline.annotate.spec import annotate_spec, decode_spec
from pipeline.graph.ray_errors import in_one_line
from pipeline.graph.tuning.bench_actor import (
    BenchActor,
    MachineFacts,
    NetworkTiming,
    RunTiming,
    SizeModel,
    Speed,
    StageTiming,
    decode_sample,
)
from pipeline.storage.inputs.fetch import PART_BYTES, UNKNOWN_BYTES
from pipeline.storage.lake.encoding import to_parquet
from pipeline.storage.lake.plan.planning import PlanSlice, read_plan_slice
from pipeline.storage.lake.rows import split_rows
from schemas.errors import UsageError
from schemas.options.annotate import AnnotateConfig
from schemas.tables import Table

SAMPLE = 128
"""Images of a sample: four batches of the default size on CPU."""
SAMPLE_SLICES = 8
"""Slices of the plan from which the images of a sample come."""


def sample_plan(slices: Sequence[PlanSlice], fs: AbstractFileSystem, root: str) -> pa.Table:
    """Return up to SAMPLE planned inputs (PLAN) from the whole plan, shuffled, with at most PART_BYTES together."""
    chosen = slices[:: max(1, math.ceil(len(slices) / SAMPLE_SLICES))]
    each = math.ceil(SAMPLE / len(chosen))
    sample = pa.concat_tables(read_plan_slice(fs, root, one).slice(0, each) for one in chosen)
    sample = sample.take(np.random.default_rng(0).permutation(len(sample)))
    total_bytes = np.cumsum(pc.fill_null(sample["size_bytes"], UNKNOWN_BYTES).to_numpy())
    return sample.slice(0, max(1, int(np.searchsorted(total_bytes, PART_BYTES))))


def fetch_sample(reader: ImageReader, sample: pa.Table) -> tuple[pa.Table, StageTiming]:
    """Return a sample (PLAN) with its encoded bytes (FETCHED), and the time that fetching took."""
    reader.fetch(sample.slice(0, 1))  # Connects to the store, so that the time below has no connecting in it.
    started, cpu_started = time.perf_counter(), time.process_time()
    fetched = reader.fetch(sample)
    return fetched, StageTiming(len(sample), time.perf_counter() - started, time.process_time() - cpu_started)


def encode_rows(rows: pa.Table, outputs: Sequence[str]) -> tuple[StageTiming, dict[Table, SizeModel]]:
    """Return the time for writing wide rows as Parquet, and for each table a model of its files' sizes."""

    def sizes(part: pa.Table) -> dict[Table, int]:
        return {
            table: len(to_parquet(some)) for table, some in split_rows(part, "sample", outputs).items() if len(some)
        }

    half = sizes(rows.slice(0, len(rows) // 2))
    started, cpu_started = time.perf_counter(), time.process_time()
    whole = sizes(rows)
    pace = StageTiming(len(rows), time.perf_counter() - started, time.process_time() - cpu_started)
    return pace, {table: _size(len(rows), half.get(table, 0), size) for table, size in whole.items()}


def _size(images: int, half_bytes: int, whole_bytes: int) -> SizeModel:
    """Return a file's size as a function of its images, from the sizes for the whole and for half of the sample."""
    per_image = (whole_bytes - half_bytes) / (images - images // 2)
    if not half_bytes:
        return SizeModel(0.0, whole_bytes / images)
    return SizeModel(max(0.0, whole_bytes - per_image * images), per_image)


class Bench:
    """Actors with the sample and the network, and methods of the driver that measure their times."""

    def __init__(self, config: AnnotateConfig, model: Model, compute: Compute, sample: pa.Table) -> None:
        """Start the actors of ``compute`` and wait until they are warm; ``sample`` has planned inputs (PLAN)."""
        started = time.perf_counter()
        self._outputs, self._decode_spec = config.outputs, decode_spec(config, model)
        specs = self._decode_spec, annotate_spec(config, model, compute.runtime)
        state = [ray.put(model.weights.state)]
        actor: Any = ray.remote(num_cpus=compute.actor_cpus, num_gpus=compute.gpus_per_actor)(BenchActor)
        self._actors: list[Any] = [actor.remote(*specs, state) for _ in range(compute.actors[0])]
        fetch: Any = ray.remote(num_cpus=compute.read_cpus, num_returns=2)(fetch_sample)
        reader = ImageReader(config.storage, config.out, config.max_bytes)
        self._fetched, pace = fetch.remote(reader, sample)
        self._machines: list[MachineFacts] = ray.get([one.warm_up.remote(self._fetched) for one in self._actors])
        self._fetch: StageTiming = ray.get(pace)
        self.start_s = time.perf_counter() - started
        """Seconds until the networks were loaded and warm, and the sample was fetched."""

    @property
    def compiles(self) -> bool:
        """Return whether torch.compile finds a compiler on every machine that has an actor."""
        return all(machine.compiles for machine in self._machines)

    def close(self) -> None:
        """End the actors, which frees their memory."""
        for actor in self._actors:
            ray.kill(actor)

    def _decode(self, compute: Compute, workers: int, seconds: float) -> list[StageTiming]:
        """Return the timing of each of ``workers`` decoders: actors, or tasks where ``compute`` decodes remotely."""
        if compute.decode != "remote":
            actors = self._actors[:workers]
            paces: list[StageTiming] = ray.get([one.decode.remote(compute, seconds) for one in actors])
            return paces
        task: Any = ray.remote(num_cpus=compute.decode_cpus)(decode_sample)
        rounds = [
            ray.get([task.remote(self._decode_spec, self._fetched, compute, part_s) for _ in range(workers)])
            for part_s in (0.0, seconds)  # The first round starts the processes of the tasks.
        ]
        return rounds[-1]

    def network(self, compute: Compute, seconds: float) -> Speed | str:
        """Return the speed of all actors of ``compute`` together, or the reason why they can't run the network."""
        timings = self._networks(compute, seconds)
        if isinstance(timings, str):
            return timings
        return Speed(sum(1 / one.pace.image_s for one in timings), max(one.ready_s for one in timings))

    def stages(self, compute: Compute, machine: Machine, seconds: float) -> RunTiming:
        """Return the times of all stages under the plan ``compute``; raises UsageError where the network can't run."""
        decode = self._decode(compute, decoders(compute, machine), seconds / 2)
        timings = self._networks(compute, seconds)
        if isinstance(timings, str):
            raise cannot_run(compute, timings)
        compile_s = max(one.ready_s for one in timings) if compute.runtime.compile else 0.0
        rows = timings[0].rows.slice(0, self._fetch.images)
        encode: Any = ray.remote(num_cpus=compute.write_cpus)(encode_rows)
        encode_pace, sizes = ray.get(encode.remote(rows, self._outputs))
        nodes = {each.node: each for each in self._machines}.values()
        return RunTiming(
            device=compute.runtime.device,
            images=len(rows),
            rejected=len(rows) - rows["reason_code"].null_count,
            start_s=self.start_s + compile_s,
            fetch=self._fetch,
            decode=StageTiming.together(decode),
            network=StageTiming.together(one.pace for one in timings),
            encode=encode_pace,
            sizes=sizes,
            actors=len(timings),
            decoders=len(decode),
            cores=sum(node.cores for node in nodes),
            cpus=sum(node.cpus for node in nodes),
        )

    def _networks(self, compute: Compute, seconds: float) -> list[NetworkTiming] | str:
        actors = self._actors[: compute.actors[1]]
        results: list[NetworkTiming | str] = ray.get([actor.network.remote(compute, seconds) for actor in actors])
        refusals = [result for result in results if isinstance(result, str)]
        return refusals[0] if refusals else [result for result in results if isinstance(result, NetworkTiming)]


def cannot_run(compute: Compute, reason: str) -> UsageError:
    """Return the error for a network that can't run under the plan ``compute``."""
    if compute.runtime.compile:
        return UsageError(reason)
    size = compute.runtime.batch_size
    return UsageError(
        f"--batch-size {size}: {reason} on the GPU; allowed: what fits; a smaller --image-size or --model takes less"
    )


@contextmanager
def open_bench(config: AnnotateConfig, model: Model, compute: Compute, sample: pa.Table) -> Iterator[Bench]:
    """Yield a bench with the actors of ``compute``; raises CamlakeError with one line for a failure in an actor."""
    try:
        bench = Bench(config, model, compute, sample)
        try:
            yield bench
        finally:
            bench.close()
    except ray.exceptions.RayError as error:
        raise in_one_line(error) from error
