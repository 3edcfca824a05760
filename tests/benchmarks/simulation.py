"""Run the real job on a real Ray cluster on this machine, with networks that wait as long as a GPU would compute."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from ray.cluster_utils import Cluster

from jobs.benchmark.steady_rate import SilentReporter
from pipeline.annotate.image_reader import count_tables, joined_slices
from pipeline.annotate.input_plan import images_per_slice
from pipeline.annotate.job import make_job
from pipeline.annotate.model import Model
from pipeline.annotate.reporter import Advance
from pipeline.annotate.resources import images_of_block, plan_compute
from pipeline.annotate.spec import run_request
from pipeline.graph.annotate.stream import run_stream
from pipeline.graph.cluster import ray_cluster
from pipeline.graph.ray_environment import set_environment
from pipeline.images.resize import ResizePlan
from pipeline.storage.inputs.listing import list_inputs
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.plan.planning import make_plan
from pipeline.storage.lake.run import open_run
from schemas.errors import CamlakeError
from schemas.options.annotate import AnnotateConfig
from schemas.runs import RunManifest
from tests.benchmarks.cpu_by_role import CpuByRole
from tests.benchmarks.fake_network import FakeGpu

CPUS_BESIDE = 2
"""Logical CPUs of a node for readers, decoders and writers, in addition to one for each GPU."""
OBJECT_STORE_BYTES = 256 * 2**20


class ProgressPoints(SilentReporter):
    """A reporter that shows nothing and keeps the time and the number of finished images of each report."""

    def __init__(self) -> None:
        self.points: list[tuple[float, int]] = []
        """Pairs of a time of time.perf_counter and the number of images finished by then."""

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Advance]:
        """Yield a function that stores each report in ``points``."""

        def advance(done: int, rejected: int = 0) -> None:
            self.points.append((time.perf_counter(), done))

        yield advance


@dataclass(frozen=True)
class Simulated:
    """A simulated run and its measurements."""

    manifest: RunManifest
    blocks: int
    """Number of read tasks, which is the number of blocks that the actors took."""
    finish_s: float
    """Seconds to finish the run after its last commit."""
    progress: ProgressPoints
    cpu: CpuByRole

    def steady(self) -> "Steady":
        """Return the part of the run between the first fifth and the last tenth of the images, when all actors work.

        Raises CamlakeError where the run was too short to have two reports in this part.
        """
        planned = self.manifest.counts.planned
        inner = [point for point in self.progress.points if 0.2 * planned <= point[1] <= 0.9 * planned]
        if len(inner) < 2:
            raise CamlakeError(f"{planned} images were over too soon to measure; use a larger --count")
        (start_s, start), (end_s, end) = inner[0], inner[-1]
        images = end - start
        return Steady(images, images * self.blocks / planned, end_s - start_s, self.cpu.between(start_s, end_s))


class Steady(NamedTuple):
    """Figures of the steady part of a run; ``took_s`` is its length in seconds."""

    images: int
    blocks: float
    took_s: float
    cpu_s: dict[str, float]
    """CPU seconds by role."""


@contextmanager
def simulated_cluster(nodes: int, gpus: int) -> Iterator[str]:
    """Run a Ray cluster of a head and ``nodes`` nodes and yield its address.

    Ray believes that each node has ``gpus`` GPUs; the machine needs none.
    """
    set_environment()
    sizes = {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **sizes})
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=gpus + CPUS_BESIDE, num_gpus=gpus, **sizes)
        cluster.wait_for_nodes()
        yield str(cluster.address)
    finally:
        cluster.shutdown()


def simulated_model(config: AnnotateConfig, gpu: FakeGpu) -> Model:
    """Return the job's model for the simulated network ``gpu``."""
    network, side = gpu({}), (gpu.map_side, gpu.map_side)
    return Model(network, gpu.weights, "0" * 64, ResizePlan(config.resize, gpu.image_size, side))


def simulate(config: AnnotateConfig, gpu: FakeGpu, block: int | None = None) -> Simulated:
    """Run the job of ``config`` with the network ``gpu``. Ray assigns simulated GPUs, and PyTorch runs on the CPU.

    ``block`` is the number of images that a read task fetches; None keeps the job's default rule.
    """
    model, progress = simulated_model(config, gpu), ProgressPoints()
    with open_run(run_request(config, model)) as opened:
        plan_dir = LakePaths(opened.root).plan_dir(opened.manifest.run_id)
        inputs, rows = (
            list_inputs(config.input, config, out=config.out, how=config.input_options),
            block or images_per_slice(config),
        )
        plan = make_plan(inputs, [], opened.fs, opened.root, plan_dir, rows_per_slice=rows)
        with ray_cluster(config.address) as machine:
            compute = plan_compute(config, machine, count_tables(plan.slices))
            runtime = replace(compute.runtime, device="cpu", precision="fp32", compile=False, threads=1)
            compute = replace(compute, runtime=runtime)
            begun = opened.begin(plan.counts, asdict(compute))
            job = make_job(config, model, begun, compute, plan.counts.planned)
            job = replace(job, annotate=replace(job.annotate, load=gpu))
            with CpuByRole() as cpu, progress.progress("", plan.counts.planned) as advance:
                run_stream(plan.slices, job, {}, lambda done: advance(done.images + done.rejected, done.rejected))
        started = time.perf_counter()
        manifest = begun.finish()
        finish_s = time.perf_counter() - started
    blocks = len(joined_slices(plan.slices, images_of_block(compute, plan.counts.planned)))
    return Simulated(manifest, blocks, finish_s, progress, cpu)
