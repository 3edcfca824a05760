"""What a run would take, measured on a few of its own images: the same stages, in this process."""

import math
import time
from dataclasses import dataclass

import pyarrow as pa

from pipeline.graph.job import Model, annotate_spec, decode_spec
from pipeline.graph.resources import Compute
from pipeline.graph.stages import AnnotateStage, DecodeStage
from pipeline.graph.stream import ImageReader
from pipeline.storage.commit import to_parquet
from pipeline.storage.rows import split_rows
from schemas.config import AnnotateConfig

SAMPLE = 64
"""Images that the estimate reads, decodes and annotates."""


@dataclass(frozen=True)
class Estimate:
    """Seconds for each image on one thread, bytes for each image, and what follows for a run of n images."""

    images: int
    sampled: int
    rejected: int
    fetch_s: float
    decode_s: float
    network_s: float
    bytes_per_image: float
    """Of all tables, as Parquet."""
    actors: int

    @property
    def images_per_s(self) -> float:
        """Return the predicted speed: the actors side by side, each decoding and running the network in turn."""
        per_image_s = self.decode_s + self.network_s
        return self.actors / per_image_s if per_image_s else math.inf

    @property
    def duration_s(self) -> float:
        """Return the predicted time of the run without its start."""
        return self.images / self.images_per_s

    @property
    def output_bytes(self) -> float:
        """Return the predicted size of the run's tables."""
        return self.images * self.bytes_per_image


def estimate(config: AnnotateConfig, model: Model, compute: Compute, planned: int, sample: pa.Table) -> Estimate:
    """Run planned inputs (PLAN) through the stages, one thread, and return what the whole run would take."""
    decode = DecodeStage(decode_spec(config, model))
    annotate = AnnotateStage(annotate_spec(config, model, compute), model.weights.state)
    started = time.perf_counter()
    fetched = ImageReader(config, config.out, config.max_bytes).fetch(sample)
    fetch_s = time.perf_counter() - started
    annotate(decode(fetched.slice(0, min(len(fetched), 8))))  # The first pass allocates and chooses kernels.
    started = time.perf_counter()
    decoded = decode(fetched)
    decode_s = time.perf_counter() - started
    started = time.perf_counter()
    step = compute.batch_size
    rows = pa.concat_tables([annotate(decoded.slice(at, step)) for at in range(0, len(decoded), step)])
    network_s = time.perf_counter() - started
    tables = split_rows(rows, "estimate", config.outputs)
    n = max(1, len(sample))
    return Estimate(
        images=planned,
        sampled=len(sample),
        rejected=len(tables["quarantine"]),
        fetch_s=fetch_s / n,
        decode_s=decode_s / n,
        network_s=network_s / n,
        bytes_per_image=sum(len(to_parquet(table)) for table in tables.values()) / n,
        actors=compute.actors[1],
    )
