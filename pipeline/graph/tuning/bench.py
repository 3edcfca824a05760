"""Times the stages on a sample of a run's own images, in actors and tasks that get what the run's would get.

As many actors as the run starts with work side by side, so that what they take from each other is in the figures.
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

from pipeline.annotate.model import Model
from pipeline.annotate.reader import FETCH_BYTES, UNKNOWN_BYTES, ImageReader
from pipeline.annotate.spec import annotate_spec, decode_spec
from pipeline.graph.ray_errors import in_one_line
from pipeline.graph.resources import Compute, Machine, decoders
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
from pipeline.storage.lake.encoding import to_parquet
from pipeline.storage.lake.planning import PlanSlice, read_plan_slice
from pipeline.storage.lake.rows import split_rows
from schemas.annotate import AnnotateConfig
from schemas.errors import UsageError
from schemas.tables import Table

SAMPLE = 128
"""Images that are read for a measurement: four batches of the default size on CPU."""
SAMPLE_SLICES = 8
"""Places of the plan that they come from."""


def sample_plan(slices: Sequence[PlanSlice], fs: AbstractFileSystem, root: str) -> pa.Table:
    """Return up to SAMPLE planned inputs (PLAN), spread over the plan and mixed, of at most FETCH_BYTES."""
    chosen = slices[:: max(1, math.ceil(len(slices) / SAMPLE_SLICES))]
    each = math.ceil(SAMPLE / len(chosen))
    sample = pa.concat_tables(read_plan_slice(fs, root, one).slice(0, each) for one in chosen)
    sample = sample.take(np.random.default_rng(0).permutation(len(sample)))
    total_bytes = np.cumsum(pc.fill_null(sample["size_bytes"], UNKNOWN_BYTES).to_numpy())
    return sample.slice(0, max(1, int(np.searchsorted(total_bytes, FETCH_BYTES))))


def fetch_sample(reader: ImageReader, sample: pa.Table) -> tuple[pa.Table, StageTiming]:
    """Return a sample (PLAN) with its encoded bytes (FETCHED), and what that took."""
    reader.fetch(sample.slice(0, 1))  # Connects.
    started, cpu_started = time.perf_counter(), time.process_time()
    fetched = reader.fetch(sample)
    return fetched, StageTiming(len(sample), time.perf_counter() - started, time.process_time() - cpu_started)


def encode_rows(rows: pa.Table, outputs: Sequence[str]) -> tuple[StageTiming, dict[Table, SizeModel]]:
    """Return what it takes to write wide rows as Parquet, and how large each table's files are."""

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
    """Return the size of a file by its images, from those of the whole sample and of half of it."""
    per_image = (whole_bytes - half_bytes) / (images - images // 2)
    if not half_bytes:
        return SizeModel(0.0, whole_bytes / images)
    return SizeModel(max(0.0, whole_bytes - per_image * images), per_image)


class Bench:
    """The driver's side: actors that hold the sample and the network, ready to be timed in many ways."""

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
        self._places: list[MachineFacts] = ray.get([one.warm_up.remote(self._fetched) for one in self._actors])
        self._fetch: StageTiming = ray.get(pace)
        self.start_s = time.perf_counter() - started
        """Until the networks were loaded and warm, with the sample at hand."""

    @property
    def compiles(self) -> bool:
        """Return whether torch.compile finds its compiler wherever the actors are."""
        return all(place.compiles for place in self._places)

    def close(self) -> None:
        """End the actors, which gives their memory back."""
        for actor in self._actors:
            ray.kill(actor)

    def _decode(self, compute: Compute, workers: int, seconds: float) -> list[StageTiming]:
        """Return how fast so many decoders work: ``compute``'s actors, or tasks where it decodes remotely."""
        if compute.decode != "remote":
            actors = self._actors[:workers]
            paces: list[StageTiming] = ray.get([one.decode.remote(compute, seconds) for one in actors])
            return paces
        task: Any = ray.remote(num_cpus=compute.decode_cpus)(decode_sample)
        rounds = [
            ray.get([task.remote(self._decode_spec, self._fetched, compute, part_s) for _ in range(workers)])
            for part_s in (0.0, seconds)  # The first one starts their processes.
        ]
        return rounds[-1]

    def network(self, compute: Compute, seconds: float) -> Speed | str:
        """Return how fast the actors of ``compute`` run its network together, or why they can't."""
        found = self._networks(compute, seconds)
        if isinstance(found, str):
            return found
        return Speed(sum(1 / ran.pace.image_s for ran in found), max(ran.ready_s for ran in found))

    def stages(self, compute: Compute, machine: Machine, seconds: float) -> RunTiming:
        """Time every stage as ``compute`` would run it; raises UsageError where its network can't run so."""
        decode = self._decode(compute, decoders(compute, machine), seconds / 2)
        found = self._networks(compute, seconds)
        if isinstance(found, str):
            raise cannot_run(compute, found)
        compile_s = max(ran.ready_s for ran in found) if compute.runtime.compile else 0.0
        rows = found[0].rows.slice(0, self._fetch.images)
        encode: Any = ray.remote(num_cpus=compute.write_cpus)(encode_rows)
        encode_pace, sizes = ray.get(encode.remote(rows, self._outputs))
        nodes = {place.node: place for place in self._places}.values()
        return RunTiming(
            device=compute.runtime.device,
            images=len(rows),
            rejected=len(rows) - rows["reason_code"].null_count,
            start_s=self.start_s + compile_s,
            fetch=self._fetch,
            decode=StageTiming.together(decode),
            network=StageTiming.together(ran.pace for ran in found),
            encode=encode_pace,
            sizes=sizes,
            actors=len(found),
            decoders=len(decode),
            cores=sum(place.cores for place in nodes),
            cpus=sum(place.cpus for place in nodes),
        )

    def _networks(self, compute: Compute, seconds: float) -> list[NetworkTiming] | str:
        actors = self._actors[: compute.actors[1]]
        found: list[NetworkTiming | str] = ray.get([one.network.remote(compute, seconds) for one in actors])
        refusals = [ran for ran in found if isinstance(ran, str)]
        return refusals[0] if refusals else [ran for ran in found if isinstance(ran, NetworkTiming)]


def cannot_run(compute: Compute, reason: str) -> UsageError:
    """Return the error for a network that can't run as ``compute`` says."""
    if compute.runtime.compile:
        return UsageError(reason)
    size = compute.runtime.batch_size
    return UsageError(
        f"--batch-size {size}: {reason} on the GPU; allowed: what fits; a smaller --image-size or --model takes less"
    )


@contextmanager
def open_bench(config: AnnotateConfig, model: Model, compute: Compute, sample: pa.Table) -> Iterator[Bench]:
    """Open a bench with the actors of ``compute``; raises CamlakeError with one line for what failed in them."""
    try:
        bench = Bench(config, model, compute, sample)
        try:
            yield bench
        finally:
            bench.close()
    except ray.exceptions.RayError as error:
        raise in_one_line(error) from error
