"""Predicts the duration and output of a run from the times of its stages and the CPUs and actors that they share."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.annotate.resources import Compute, Machine
from pipeline.graph.tuning.bench_actor import RunTiming
from schemas.tables import Table

RAY_CORES = 0.12
"""Cores that Ray's own processes and the driver keep busy; this does not depend on the images."""
RAY_START_S = 1.5
"""Seconds that Ray Data takes to plan a run and to start its own actors, without the start of the networks.

Measured on two cores, where Ray Data uses about 3 CPU seconds.
"""


@dataclass(frozen=True)
class StageLimit:
    """The speed limit of a stage, or of a resource that several stages share."""

    name: str
    image_s: float
    """Seconds that one worker takes for an image."""
    workers: float
    unit: str
    """The kind of the workers: actors, tasks or cores."""

    @property
    def images_per_s(self) -> float:
        """Return the speed of all workers if nothing else slows them down; infinite for a stage without cost."""
        return self.workers / self.image_s if self.image_s else math.inf


@dataclass(frozen=True)
class Prediction:
    """The predicted speed, duration and output of a run of ``planned`` images."""

    planned: int
    whole: bool
    """False where the device of the network could not be measured: speeds are upper bounds, times lower bounds."""
    stages: tuple[StageLimit, ...]
    start_s: float
    """Seconds until the actors have loaded their networks."""
    drain_s: float
    """Seconds for the last tables after all other tables are done."""
    sizes: Mapping[Table, float]
    """Bytes of each output table."""
    cores: float
    gpus: float
    """GPUs that the actors take."""

    @property
    def limit(self) -> StageLimit:
        """Return the stage with the lowest speed, which limits the run."""
        return min(self.stages, key=lambda stage: stage.images_per_s)

    @property
    def images_per_s(self) -> float:
        """Return the speed while all actors work; rejected images are counted too."""
        return self.limit.images_per_s

    @property
    def duration_s(self) -> float:
        """Return the seconds from the start of the networks to the end of the run."""
        return self.start_s + self.planned / self.images_per_s + self.drain_s

    @property
    def output_bytes(self) -> float:
        """Return the size of all tables."""
        return sum(self.sizes.values())


def stages(compute: Compute, machine: Machine, timed: RunTiming) -> tuple[StageLimit, ...]:
    """Return the speed limits of a run: of each stage, of the actors and of all cores together.

    An actor with a GPU decodes one table while its network works on another table. Where both need the GPU, or the same
    core, they work one after the other. A network that was measured on another device than the run's device gets no
    limit, because the speed of a CPU does not show the speed of a GPU or of nvJPEG.
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
    """Return the core seconds that an image takes in all stages together.

    Where workers keep their cores busy, the wall time counts, because it includes how workers slow each other down.
    Where workers wait for a store or a GPU, the CPU time of their processes counts.
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
    """Return the cores of a cluster: its CPUs, reduced where the measured machines have more CPUs than cores."""
    return machine.cores or machine.cpus * min(1.0, timed.cores / timed.cpus)


def predict_images_per_s(compute: Compute, machine: Machine, timed: RunTiming) -> float:
    """Return the speed of a run, which is its lowest limit."""
    return min(stage.images_per_s for stage in stages(compute, machine, timed))


def predict(
    compute: Compute, machine: Machine, timed: RunTiming, planned: int, per_slice: int, per_commit: int
) -> Prediction:
    """Return the prediction for ``planned`` images, ``per_slice`` in each read task, ``per_commit`` in each commit."""
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
