"""The actor that measures the times of the stages: it runs each stage over a sample again and again.

Ray keeps the class of an actor, and with it all imports of this module, until the process ends. DuckDB would report
this on standard error, so this module does not import DuckDB.
"""

import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import ray
import torch
from torch import Tensor

from pipeline.annotate.annotate_stage import AnnotateSpec, AnnotateStage
from pipeline.annotate.decode_stage import DecodeSpec, DecodeStage
from pipeline.annotate.gpu_decode_stage import GpuDecodeStage
from pipeline.annotate.resources import Compute
from pipeline.models.localize.runtime import Runtime
from schemas.errors import ModelError
from schemas.tables import Table

T = TypeVar("T")


class StageTiming(NamedTuple):
    """The work and the time of one worker in a stage, while the other workers did the same work."""

    images: int
    wall_s: float
    cpu_s: float
    """CPU seconds of the worker's whole process."""

    @property
    def image_s(self) -> float:
        """Return the seconds that one worker takes for an image."""
        return self.wall_s / self.images

    @property
    def image_cpu_s(self) -> float:
        """Return the CPU seconds that an image takes."""
        return self.cpu_s / self.images

    @classmethod
    def together(cls, timings: Iterable["StageTiming"]) -> "StageTiming":
        """Return the timing of the average worker."""
        return cls(*(sum(values) for values in zip(*timings, strict=True)))


class Speed(NamedTuple):
    """The speed of all actors together."""

    images_per_s: float
    ready_s: float
    """Seconds until the network was loaded and, if the plan asks for it, compiled."""


class NetworkTiming(NamedTuple):
    """How fast the network of one actor is."""

    pace: StageTiming
    ready_s: float
    """Seconds until the network was ready."""
    rows: pa.Table
    """Wide rows of the images that were annotated at least once."""


class SizeModel(NamedTuple):
    """Bytes that n images take in a Parquet file: ``fixed + n · per_image``."""

    fixed: float
    per_image: float


@dataclass(frozen=True)
class RunTiming:
    """The times of all stages on the sample; in each stage all workers work at the same time."""

    device: str
    """Device of the network: cpu or cuda."""
    images: int
    rejected: int
    start_s: float
    """Seconds from the start until the networks were loaded and warm, and the sample was fetched."""
    fetch: StageTiming
    decode: StageTiming
    network: StageTiming
    encode: StageTiming
    sizes: dict[Table, SizeModel]
    actors: int
    """Actors that worked at the same time."""
    decoders: int
    """Workers that decoded at the same time: actors or tasks."""
    cores: int
    """Cores of the machines on which the stages were timed."""
    cpus: float
    """Logical CPUs that Ray hands out on these machines."""


class MachineFacts(NamedTuple):
    """A machine of the cluster."""

    node: str
    cores: int
    cpus: float
    """Logical CPUs that Ray hands out."""
    compiles: bool
    """Whether torch.compile finds the compiler that it needs: for C++ on CPU, for C on CUDA."""

    @classmethod
    def here(cls, device: str) -> "MachineFacts":
        """Return the facts of the machine of this process."""
        node_id = ray.get_runtime_context().get_node_id()
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        cpus = next(node["Resources"].get("CPU", 1.0) for node in nodes if node["NodeID"] == node_id)
        names = ("CXX", "c++", "g++", "clang++") if device == "cpu" else ("CC", "cc", "gcc", "clang")
        compiles = any(shutil.which(os.environ.get(name, name)) for name in names)
        return cls(node_id, os.cpu_count() or 1, cpus, compiles)


class BenchActor:
    """An actor as in a run; it measures itself while it decodes and annotates the same images again and again."""

    def __init__(self, decode: DecodeSpec, annotate: AnnotateSpec, state: Sequence[Any]) -> None:
        """``state`` holds the reference to the network's weights, as in the actors of a run."""
        self._decode_spec, self._spec = decode, annotate
        self._state: dict[str, Tensor] = ray.get(state[0])
        self._stage: tuple[Runtime, AnnotateStage] | None = None

    def warm_up(self, fetched: pa.Table) -> MachineFacts:
        """Decode the sample, annotate one batch of it, and return the facts of this machine."""
        self._fetched = fetched
        self._decoded = DecodeStage(self._decode_spec)(fetched)
        self._network(self._spec.runtime)
        return MachineFacts.here(self._spec.runtime.device)

    def decode(self, compute: Compute, seconds: float) -> StageTiming:
        """Return how fast this actor decodes, in threads beside its network or on its GPU."""
        if compute.decode != "gpu":
            return decode_sample(self._decode_spec, self._fetched, compute, seconds)
        stage = GpuDecodeStage(self._decode_spec, "cuda", compute.decode_threads)

        def finished(images: pa.Table) -> None:
            stage(images)
            torch.cuda.synchronize()

        return time_batches(finished, self._fetched, compute.runtime.batch_size, seconds)[0]

    def network(self, compute: Compute, seconds: float) -> NetworkTiming | str:
        """Return how fast the network runs by the plan, or the reason why it can't: memory, or no compiler."""
        runtime = compute.runtime
        started = time.perf_counter()
        try:
            stage, decoded = self._network(runtime)
            ready_s = time.perf_counter() - started
            with ThreadPoolExecutor(compute.calls) as pool:
                lanes = [
                    pool.submit(time_batches, stage, decoded, runtime.batch_size, seconds) for _ in range(compute.calls)
                ]
                found = [lane.result() for lane in lanes]
        except torch.OutOfMemoryError:
            self._stage = None
            torch.cuda.empty_cache()
            return "out of memory"
        except ModelError as error:
            if not runtime.compile:
                raise
            return str(error)
        images, wall_s, cpu_s = zip(*(pace for pace, _ in found), strict=True)
        # Each lane measures the CPU time of the whole process, so their largest value is the sum.
        return NetworkTiming(StageTiming(sum(images), max(wall_s), max(cpu_s)), ready_s, pa.concat_tables(found[0][1]))

    def _network(self, runtime: Runtime) -> tuple[AnnotateStage, pa.Table]:
        """Return a warm stage for ``runtime``, and the decoded sample, repeated until it fills a batch.

        A first batch allocates memory, chooses kernels and compiles. The memory of the previous stage is freed before.
        """
        decoded = self._decoded
        while len(decoded) < runtime.batch_size:
            decoded = pa.concat_tables([decoded, decoded])
        if self._stage is None or self._stage[0] != runtime:
            self._stage = None
            stage = AnnotateStage(replace(self._spec, runtime=runtime), self._state)
            stage(decoded.slice(0, runtime.batch_size))
            self._stage = runtime, stage
        return self._stage[1], decoded


def time_batches(
    stage: Callable[[pa.Table], T], images: pa.Table, batch_size: int, seconds: float
) -> tuple[StageTiming, list[T]]:
    """Run a stage over the images again and again for ``seconds``; return its timing, and the first round's results.

    All batches are full, as nearly all batches of a run are, unless there are fewer images than ``batch_size``. The
    first round may end before the last image.
    """
    starts = range(0, max(1, len(images) - batch_size + 1), batch_size)
    first: list[T] = []
    started, cpu_started = time.perf_counter(), time.process_time()
    for done in itertools.count(1):
        out = stage(images.slice(starts[(done - 1) % len(starts)], batch_size))
        if done <= len(starts):
            first.append(out)
        if time.perf_counter() - started >= seconds:
            break
    pace = StageTiming(
        done * min(batch_size, len(images)), time.perf_counter() - started, time.process_time() - cpu_started
    )
    return pace, first


def decode_sample(spec: DecodeSpec, fetched: pa.Table, compute: Compute, seconds: float) -> StageTiming:
    """Return how fast this process decodes a sample (FETCHED) on its CPUs."""
    stage = DecodeStage(spec, compute.decode_threads)
    return time_batches(stage, fetched, compute.runtime.batch_size, seconds)[0]
