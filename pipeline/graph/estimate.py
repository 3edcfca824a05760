"""What a run would take, measured on a few of its own images where its actors would run, by the same stages."""

import time
from dataclasses import dataclass

import pyarrow as pa
import ray
from torch import Tensor

from pipeline.graph.annotating import AnnotateSpec, AnnotateStage
from pipeline.graph.decoding import DecodeSpec, DecodeStage
from pipeline.graph.job import Model, annotate_spec, decode_spec, storage_of
from pipeline.graph.resources import Compute, Machine
from pipeline.graph.source import ImageReader
from pipeline.storage.commit import to_parquet
from pipeline.storage.rows import split_rows
from schemas.config import AnnotateConfig

SAMPLE = 64
"""Images that the estimate reads, decodes and annotates."""
WARM_UP = 8
"""Images of a first pass that does not count: it allocates and chooses kernels."""


@dataclass(frozen=True)
class Timed:
    """What the stages took for a sample of n images, one after the other, and what came out."""

    images: int
    rejected: int
    fetch_s: float
    decode_s: float
    network_s: float
    output_bytes: int
    """Of all tables, as Parquet."""


@dataclass(frozen=True)
class Estimate:
    """A sample's times, and what follows for the whole run."""

    planned: int
    timed: Timed
    compute: Compute
    cpus: float

    @property
    def images_per_s(self) -> float:
        """Return the predicted speed: that of the slowest stage, each with all of its workers."""
        timed, compute = self.timed, self.compute
        actors = compute.actors[1]
        if compute.decode == "local":
            return actors * timed.images / (timed.decode_s + timed.network_s)
        decoders = max(1.0, (self.cpus - actors * compute.actor_cpus) // compute.decode_cpus)
        return min(actors * timed.images / timed.network_s, decoders * timed.images / timed.decode_s)

    @property
    def duration_s(self) -> float:
        """Return the predicted time of the run without its start."""
        return self.planned / self.images_per_s

    @property
    def bytes_per_image(self) -> float:
        """Return the size of an image's rows in Parquet."""
        return self.timed.output_bytes / self.timed.images


def estimate(
    config: AnnotateConfig, model: Model, compute: Compute, machine: Machine, planned: int, sample: pa.Table
) -> Estimate:
    """Run planned inputs (PLAN) through the stages in one Ray task with an actor's resources; ``sample`` has some."""
    reader = ImageReader(storage_of(config), config.out, config.max_bytes)
    task = ray.remote(num_cpus=compute.actor_cpus, num_gpus=compute.gpus_per_actor)(measure)
    specs = decode_spec(config, model), annotate_spec(config, model, compute)
    timed: Timed = ray.get(task.remote(reader, *specs, ray.put(model.weights.state), sample))
    return Estimate(planned, timed, compute, machine.cpus)


def measure(
    reader: ImageReader,
    decode: DecodeSpec,
    annotate: AnnotateSpec,
    state: dict[str, Tensor],
    sample: pa.Table,
) -> Timed:
    """Fetch, decode and annotate a sample (PLAN) and return what each stage took."""
    batch_size = annotate.runtime.batch_size
    decoding, annotating = DecodeStage(decode), AnnotateStage(annotate, state)
    started = time.perf_counter()
    fetched = reader.fetch(sample)
    fetch_s = time.perf_counter() - started
    annotating(decoding(fetched.slice(0, WARM_UP)))
    started = time.perf_counter()
    decoded = decoding(fetched)
    decode_s = time.perf_counter() - started
    started = time.perf_counter()
    rows = pa.concat_tables([annotating(decoded.slice(at, batch_size)) for at in range(0, len(decoded), batch_size)])
    network_s = time.perf_counter() - started
    tables = split_rows(rows, "estimate", annotate.outputs)
    output_bytes = sum(len(to_parquet(table)) for table in tables.values() if len(table))
    return Timed(len(sample), len(tables["quarantine"]), fetch_s, decode_s, network_s, output_bytes)
