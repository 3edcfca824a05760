"""Plans how an annotation uses a cluster: the actors, their shares of the CPUs, the sizes of slices and commits."""

import math
from dataclasses import dataclass
from typing import Literal

from pipeline.annotate.input_plan import CPU_BATCH, TUNE_FROM
from pipeline.models.localize.runtime import Runtime, resolve_precision
from schemas.errors import UsageError
from schemas.options.annotate import AnnotateConfig
from schemas.options.config import Device

LOGICAL_PER_CORE = 2
"""Logical CPUs for each core of one machine: networks keep the cores busy, fetching and committing wait."""
GPU_BATCH = 256
"""Images of one forward pass on a GPU."""
GPU_CALLS = 2
"""Tables that an actor with a GPU works on at the same time, each in a thread.

The copies, small kernels and Python code of one table run during the forward pass of the other table. On a CPU both
tables would only share the same core.
"""
MIN_CPUS = 0.05
"""Least CPUs of a network in a plan; a smaller share means that the user asked for too many processes by mistake."""
MAX_DECODE_THREADS = 16
"""Most decoding threads of one actor; more threads would wait for Python's lock."""
BLOCKS_PER_ACTOR = 8
"""Least blocks for each actor, so that no actor is idle for long at the end of a run."""
COMMIT_BYTES = 256 * 2**20
"""Most bytes of rows in one commit, which are held in memory."""


@dataclass(frozen=True)
class Machine:
    """The CPUs and GPUs of a cluster."""

    cpus: float
    """Logical CPUs that Ray hands out."""
    gpus: float
    cores: int | None
    """Cores of this machine, if Ray was started here for this run; None for a cluster, which others may use too."""

    @property
    def name(self) -> str:
        """Return what a user calls it."""
        return "this Ray cluster" if self.cores is None else "this machine"

    @property
    def spare_cpus(self) -> float:
        """Return the logical CPUs that the networks leave to fetching, decoding and committing: a quarter."""
        return max(0.5, self.cpus / 4)

    def uses_gpu(self, device: Device) -> bool:
        """Return whether ``device`` means a GPU here; raises UsageError for ``cuda`` on a cluster without a GPU."""
        if device == "cuda" and self.gpus == 0:
            raise UsageError(f"--device cuda: {self.name} has no GPU; allowed here: cpu, auto")
        return device != "cpu" and self.gpus > 0

    def share_cpus(self, networks: int, problem: str) -> float:
        """Return the CPUs for each of so many ``networks``, which leave ``spare_cpus`` free.

        Raises UsageError with the text ``problem`` for a share of less than ``MIN_CPUS``.
        """
        share = (self.cpus - self.spare_cpus) / networks
        if share < MIN_CPUS:
            raise UsageError(problem)
        return share


@dataclass(frozen=True)
class Compute:
    """Where the stages of an annotation run, with no choice left open."""

    runtime: Runtime
    actors: tuple[int, int]
    """Least and most actors; a run starts with the least."""
    calls: int
    """Tables that an actor works on at the same time, each in a thread."""
    actor_cpus: float
    gpus_per_actor: float
    decode: Literal["local", "remote", "gpu"]
    decode_threads: int
    """Images that an actor decodes at the same time where ``decode`` is not remote."""
    decode_cpus: float
    """CPUs of a decode task where ``decode`` is remote."""
    read_cpus: float
    write_cpus: float
    why: str = "defaults"
    """In a few words for the user: how the values were chosen that the user left open."""


def plan_compute(config: AnnotateConfig, machine: Machine, n_tables: int | None = None) -> Compute:
    """Return where every stage runs, by rules without measurement.

    There are never more actors than ``n_tables``, the tables that the run annotates. An option that the user left open
    gets a value that is safe everywhere; ``pipeline.graph.tuning.autotune`` measures better values for long runs.

    On CPU each actor has one core and one thread. So all cores work while one of the actors decodes; a single network
    with many threads would leave cores idle then. A quarter of the logical CPUs stays free for reading and committing,
    so that a cluster of one CPU does not wait for itself.

    Raises UsageError for CUDA or nvJPEG where no GPU is used, and for more actors than the CPUs can hold.
    """
    cuda = machine.uses_gpu(config.device)
    if config.decode == "gpu" and not cuda:
        raise UsageError("--decode gpu: the network runs on the CPU here; allowed there: auto, local, remote")
    spare = machine.spare_cpus
    if cuda:
        default = max(1, math.floor(machine.gpus / config.gpus_per_actor))
    else:
        room = max(1, math.floor(machine.cpus - spare))
        default = min(machine.cores or room, room)
    actors = config.actors or (default, default)
    too_few = f"{machine.name} has {machine.cpus:g} CPUs, too few for {actors[0]} actors"
    share = machine.share_cpus(actors[0], f"--actors {actors[0]}:{actors[1]}: {too_few}")
    actors = (min(actors[0], n_tables or actors[0]), min(actors[1], n_tables or actors[1]))
    decode = config.decode if config.decode != "auto" else ("remote" if cuda else "local")
    # On a cluster the share is not used, because it counts the CPUs of nodes without a GPU, which have no actor.
    alone = cuda and decode != "remote" and machine.cores is not None
    decode_threads = max(1, min(MAX_DECODE_THREADS, math.floor(share))) if alone else 1
    return Compute(
        runtime=Runtime(
            device="cuda" if cuda else "cpu",
            precision=config.precision,
            compile=config.compile == "on",
            threads=max(1, (machine.cores or 1) // actors[1]),
            batch_size=config.batch_size or (GPU_BATCH if cuda else CPU_BATCH),
        ),
        actors=actors,
        calls=GPU_CALLS if cuda else 1,
        actor_cpus=math.floor(min(float(decode_threads), share) * 100) / 100,
        gpus_per_actor=config.gpus_per_actor if cuda else 0.0,
        decode=decode,
        decode_threads=decode_threads,
        decode_cpus=min(1.0, spare / 2),
        read_cpus=min(0.5, spare / 4),
        write_cpus=min(0.5, spare / 4),
    )


def worth_tuning(config: AnnotateConfig, planned: int, tune_from: int = TUNE_FROM) -> bool:
    """Return whether a run is long enough for trials and leaves an option open."""
    all_chosen = config.batch_size and config.actors and config.compile != "auto" and config.decode != "auto"
    return planned >= tune_from and not all_chosen


def decoders(compute: Compute, machine: Machine) -> int:
    """Return how many workers decode at the same time: the actors, or the tasks that fit beside the actors."""
    actors = compute.actors[1]
    if compute.decode != "remote":
        return actors
    return max(1, math.floor((machine.cpus - actors * compute.actor_cpus) / compute.decode_cpus))


def images_of_block(compute: Compute, n_images: int) -> int:
    """Return the images of one block of a run of ``n_images``: what an actor works on at the same time.

    So a block has whole batches, which need no joining, and the driver, whose cost for a block is about 14 ms whatever
    its size, does not limit GPUs. Small runs have smaller blocks, so that all actors work.
    """
    batch = compute.runtime.batch_size
    return batch * max(1, min(compute.calls, n_images // (BLOCKS_PER_ACTOR * compute.actors[1] * batch)))


def images_per_commit(config: AnnotateConfig, n_images: int, actors: int, row_bytes: int) -> int:
    """Return the number of images of one commit, where the rows of an image take ``row_bytes``.

    There are about 16 commits for each actor, so that a crash costs little of a small run. A commit has at most 32,768
    images: its small tables make files of several MB, and a crash loses a minute or two of one GPU. It has at most
    COMMIT_BYTES, because a write task holds a few copies of the rows in memory. The local engine commits a run's first
    batch alone.
    """
    wanted = config.images_per_commit or min(32_768, max(256, math.ceil(n_images / (16 * actors))))
    return max(1, min(wanted, COMMIT_BYTES // row_bytes))


def describe(compute: Compute) -> str:
    """Return a plan in one line: actors, threads, device, number type, batch size, place of decoding, reason."""
    actors = "–".join(map(str, dict.fromkeys(compute.actors))) + (" actor" if compute.actors == (1, 1) else " actors")
    runtime = compute.runtime
    threads = f" of {runtime.threads} threads" if runtime.threads > 1 else ""
    precision = resolve_precision(runtime.precision, runtime.device)
    compiled = "compiled, " if runtime.compile else ""
    return (
        f"{actors}{threads} on {runtime.device}, {precision}, {compiled}batches of {runtime.batch_size}, "
        f"decoding {compute.decode} ({compute.why})"
    )
