"""What a run would take: the stages' own times, and how they share the actors and CPUs of a cluster."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.graph.resources import Compute, Machine
from pipeline.graph.tuning.bench_actor import RunTiming
from schemas.tables import Table

RAY_CORES = 0.12
"""Cores that Ray's own processes and the driver keep busy, whatever the images."""
RAY_START_S = 1.5
"""Seconds that Ray Data takes to plan a run and to start its own actors, beside what the network's take.

Measured on two cores, where they are about 3 seconds of one.
"""


@dataclass(frozen=True)
class StageLimit:
    """A stage, or what several share, with its own limit."""

    name: str
    image_s: float
    """Seconds that an image takes one worker."""
    workers: float
    unit: str
    """What the workers are."""

    @property
    def images_per_s(self) -> float:
        """Return the speed of all workers, if nothing else held them up."""
        return self.workers / self.image_s if self.image_s else math.inf


@dataclass(frozen=True)
class Prediction:
    """What a run of ``planned`` images would take."""

    planned: int
    whole: bool
    """False where the network's device was not at hand: speeds are upper bounds then, times lower ones."""
    stages: tuple[StageLimit, ...]
    start_s: float
    """Until the first images: actors with loaded networks."""
    drain_s: float
    """What the last tables take after the others are done."""
    sizes: Mapping[Table, float]
    """Bytes of each table."""
    cores: float
    gpus: float
    """That the actors take."""

    @property
    def limit(self) -> StageLimit:
        """Return what limits the speed."""
        return min(self.stages, key=lambda stage: stage.images_per_s)

    @property
    def images_per_s(self) -> float:
        """Return the speed once all actors are at work; rejected images count."""
        return self.limit.images_per_s

    @property
    def duration_s(self) -> float:
        """Return seconds from the start of the stream to its end."""
        return self.start_s + self.planned / self.images_per_s + self.drain_s

    @property
    def output_bytes(self) -> float:
        """Return the size of all tables."""
        return sum(self.sizes.values())


def stages(compute: Compute, machine: Machine, timed: RunTiming) -> tuple[StageLimit, ...]:
    """Return the limits of a pipeline: each stage's own, the actors' and that of all cores together.

    An actor with a GPU decodes one table while its network has another; where both need the GPU or the same core, they
    follow each other. A network that was timed on another device than the run's has no limit: nobody can tell a GPU's
    speed from a CPU's, nor nvJPEG's.
    """
    actors, cores = compute.actors[1], cores_of(machine, timed)
    free_cpus = machine.cpus - actors * compute.actor_cpus
    decode_s, network_s = timed.decode.image_s, timed.network.image_s
    local, known = compute.decode != "remote", timed.device == compute.runtime.device
    found = [
        StageLimit("fetching", timed.fetch.image_s, max(1.0, free_cpus // compute.read_cpus), "tasks"),
        StageLimit("encoding the output", timed.encode.image_s, max(1.0, free_cpus // compute.write_cpus), "tasks"),
    ]
    if not local:
        found.append(StageLimit("decoding", decode_s, max(1.0, free_cpus // compute.decode_cpus), "tasks"))
    elif known or compute.decode != "gpu":
        found.append(StageLimit("decoding", decode_s, actors, "actors"))
    if known:
        found.append(StageLimit("network, maps, boxes", network_s, actors, "actors"))
    one_by_one = compute.calls == 1 or compute.decode == "gpu"
    if known and local and one_by_one:
        found.append(StageLimit("decoding, then the network", decode_s + network_s, actors, "actors"))
    found.append(
        StageLimit("all of it on the CPUs", core_s(compute, timed), max(cores - RAY_CORES, cores / 2), "cores")
    )
    return tuple(found)


def core_s(compute: Compute, timed: RunTiming) -> float:
    """Return the seconds of one core that an image takes in all stages.

    Where workers fill their cores the time on the clock counts, since it holds what they take from each other; where
    they wait, for a store or a GPU, what their processes used.
    """
    if timed.device != compute.runtime.device:
        network = 0.0
    elif timed.device == "cuda":
        network = timed.network.image_cpu_s
    else:
        network = timed.network.image_s * _cores_each(timed, timed.actors, compute.runtime.threads)
    if compute.decode == "gpu" and timed.device != "cuda":
        decode = 0.0
    elif compute.decode == "gpu":
        decode = timed.decode.image_cpu_s
    else:
        decode = timed.decode.image_s * _cores_each(timed, timed.decoders, compute.decode_threads)
    return timed.fetch.image_cpu_s + decode + network + timed.encode.image_cpu_s


def _cores_each(timed: RunTiming, workers: int, threads: int) -> float:
    return min(float(threads), timed.cores / workers)


def cores_of(machine: Machine, timed: RunTiming) -> float:
    """Return the cores of a cluster: as many as CPUs, unless Ray hands out more of them than there are."""
    return machine.cores or machine.cpus * min(1.0, timed.cores / timed.cpus)


def predict_images_per_s(compute: Compute, machine: Machine, timed: RunTiming) -> float:
    """Return the speed of a pipeline: that of its narrowest place."""
    return min(stage.images_per_s for stage in stages(compute, machine, timed))


def predict(
    compute: Compute, machine: Machine, timed: RunTiming, planned: int, per_slice: int, per_commit: int
) -> Prediction:
    """Return what a run of ``planned`` images takes, read ``per_slice`` and committed ``per_commit`` at a time."""
    commits = math.ceil(planned / per_commit)
    last = min(per_slice, planned / compute.actors[1])
    return Prediction(
        planned=planned,
        whole=timed.device == compute.runtime.device,
        stages=stages(compute, machine, timed),
        start_s=timed.start_s + RAY_START_S,
        drain_s=last / 2 * (timed.decode.image_s + timed.network.image_s) + per_commit * timed.encode.image_s,
        sizes={table: commits * size.fixed + planned * size.per_image for table, size in timed.sizes.items()},
        cores=cores_of(machine, timed),
        gpus=compute.actors[1] * compute.gpus_per_actor,
    )
