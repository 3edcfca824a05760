"""Measure what one actor's host thread, the driver and the progress actor of a GPU run allow, on a CPU.

Simulated: the network, which costs nothing and has the shapes of a ResNet-50 (tests.benchmarks.fake_network); Ray's
GPUs and nodes. Real: the decoded tables, the copies into staging memory, the exact boxes, the rows, Ray's scheduling.
On a GPU the boxes are kernels that the host only starts. So the host thread is counted with the cost of the same calls
on a single map, and without the arithmetic of all maps; both are among the figures.
"""

import hashlib
import pickle
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import ray
import torch
from torch import Tensor

from jobs.benchmark.machine import Figures, spread
from jobs.terminal.console import main
from pipeline.annotate.annotate_stage import AnnotateStage
from pipeline.annotate.decode_stage import DECODED
from pipeline.annotate.reporter import Reporter, RunProgress
from pipeline.annotate.resources import GPU_BATCH
from pipeline.annotate.spec import annotate_spec
from pipeline.graph.cluster import ray_cluster
from pipeline.graph.progress import ActorAttempts, start_progress
from pipeline.models.localize import localizer
from pipeline.models.localize.engine import Engine, Staging, to_host
from pipeline.models.localize.runtime import Runtime
from pipeline.models.localize.stride16 import TrunkMaps
from pipeline.models.networks.network import CamNetwork
from schemas.errors import CamlakeError
from schemas.options.annotate import AnnotateConfig
from schemas.options.benchmark import MeasureConfig
from tests.benchmarks.command import benchmark, in_new_process
from tests.benchmarks.cpu_by_role import DRIVER
from tests.benchmarks.fake_network import FakeGpu
from tests.benchmarks.scale import GPUS_A_NODE, NODES, annotate_tiny, control_path, tiny_picture
from tests.benchmarks.simulation import Steady, simulated_cluster, simulated_model

CALLERS = 4
"""Processes that ask the tally at the same time."""
TALLY_CALLS = 1500
"""Tables that each of them counts."""
HOST_ROUNDS = 40
SMALL_BATCH = 32
"""Images of a batch where blocks come fast; a block has two batches, as those of a GPU have."""
BATCHES_A_COMMIT = 64
"""So the driver has as many commits for each block, whatever the block's size."""


class HostEngine(Engine):
    """An engine whose forward pass costs nothing; batches take the way through staging memory that CUDA's take."""

    def __init__(self, network: CamNetwork, runtime: Runtime, stride16: str | None = None) -> None:
        super().__init__(network, runtime, stride16)
        blank = torch.zeros(1, 3, 1, 1)
        self._maps, self._staging = network.trunk(blank), Staging(torch.device("cpu"))

    def trunk_maps(self, pixels: Tensor) -> TrunkMaps:
        """Return the same maps for each image."""
        return TrunkMaps(self._maps.expand(len(pixels), -1, -1, -1), None)

    def to_device(self, pixels: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the pixels in staging memory."""
        return self._staging.to_device([pixels] if isinstance(pixels, Tensor) else pixels)


def measure(config: MeasureConfig, reporter: Reporter) -> Figures:
    """Return images/s of one actor's host thread, of a core for the driver and of the tally."""
    figures = in_new_process(host_thread, config.repeats)
    reporter.say("host thread: done")
    with ray_cluster(None):
        figures |= tally()
    reporter.say("tally: done")
    with tempfile.TemporaryDirectory() as temporary, simulated_cluster(NODES, GPUS_A_NODE) as address:
        folder = Path(temporary)
        body = tiny_picture(folder / "one")
        runs = []
        for name, batch, count in (
            ("a GPU's blocks", GPU_BATCH, config.count),
            ("small blocks", SMALL_BATCH, config.count // 4),
        ):
            run = annotate_tiny(folder / name, address, body, count, batch, BATCHES_A_COMMIT * batch)
            figures |= control_path(name, run)
            runs.append((run.manifest.counts.planned / run.blocks, run.steady()))
            reporter.say(f"{name}: done")
    (block, large), (_, small) = runs
    return figures | driver(large, small, block)


def driver(slow: Steady, fast: Steady, block: float) -> Figures:
    """Return what the driver costs without any block and for each block, and the images/s that one core sustains.

    Both follow from two runs on one cluster whose blocks come at different rates: the driver looks after the same
    actors in both, and its cost of a block does not depend on the block's size. ``block``: images of a GPU's block.
    """
    rates = [steady.blocks / steady.took_s for steady in (slow, fast)]
    cores = [steady.cpu_s[DRIVER] / steady.took_s for steady in (slow, fast)]
    block_s = (cores[1] - cores[0]) / (rates[1] - rates[0]) if rates[1] > rates[0] else 0.0
    idle = cores[0] - block_s * rates[0]
    if block_s <= 0 or idle < 0:
        raise CamlakeError(f"blocks/s {rates} and the driver's cores {cores} tell no cost of a block; a larger --count")
    return {
        "driver: share of a core without any block": idle,
        "driver: CPU ms of a block beyond that": 1e3 * block_s,
        f"driver: images/s that one core sustains in blocks of {block:.0f}": block * (1 - idle) / block_s,
    }


def host_thread(repeats: int) -> Figures:
    """Return the milliseconds of one batch in the annotate stage, of its parts, and the images/s that follow."""
    torch.set_num_threads(1)
    stage, whole = _stage(), _decoded(GPU_BATCH)
    halves = pa.concat_tables([whole.slice(0, GPU_BATCH // 2), whole.slice(GPU_BATCH // 2)])
    rows, heat = stage(whole), torch.from_numpy(stage.localize(whole).maps.heat)
    cut = stage.spec.rule.boxes.cut
    work: dict[str, Callable[[], object]] = {
        "annotate stage, one chunk": lambda: stage(whole),
        "annotate stage, two chunks": lambda: stage(halves),
        "pickling the rows": lambda: pickle.dumps(rows, protocol=5),
        "boxes of all maps": lambda: to_host(cut(heat)),
        "boxes of one map": lambda: to_host(cut(heat[:1])),
    }
    took = {name: [_ms(call) for _ in range(repeats)] for name, call in work.items()}
    figures: Figures = {f"ms a batch of {GPU_BATCH}: {name}": spread(values) for name, values in took.items()}
    least = {name: min(values) for name, values in took.items()}
    arithmetic = least["boxes of all maps"] - least["boxes of one map"]
    for chunks in ("one chunk", "two chunks"):
        host_ms = least[f"annotate stage, {chunks}"] + least["pickling the rows"] - arithmetic
        figures[f"images/s of one actor's host thread, {chunks} a batch"] = 1e3 * GPU_BATCH / host_ms
    return figures


def _stage() -> AnnotateStage:
    """Return the annotate stage around the network that costs nothing; every map gets a box."""
    gpu = FakeGpu(float("inf"))
    config = AnnotateConfig(input="none", out="none", device="cpu", precision="fp32", min_prob=0)
    runtime = Runtime(device="cpu", precision="fp32", compile=False, threads=1, batch_size=GPU_BATCH)
    spec = annotate_spec(config, simulated_model(config, gpu), runtime)
    with patch.object(localizer, "Engine", HostEngine):
        return AnnotateStage(replace(spec, load=gpu), {})


def _decoded(images: int) -> pa.Table:
    """Return a decoded table of photographs of one size."""
    side = FakeGpu(1).image_size
    pixels = np.random.default_rng(0).integers(0, 256, side * side * 3, np.uint8).tobytes()
    names = [f"photos/{index:06d}.jpg" for index in range(images)]
    columns: dict[str, list[Any]] = {
        "image_id": [hashlib.md5(name.encode(), usedforsecurity=False).hexdigest() for name in names],
        "uri": names,
        "width_px": [500] * images,
        "height_px": [375] * images,
        "format": ["JPEG"] * images,
        "pixels": [pixels] * images,
    }
    nothing = [None] * images
    return pa.table({name: columns.get(name, nothing) for name in DECODED.names}, schema=DECODED)


def _ms(work: Callable[[], object]) -> float:
    """Return the milliseconds of one call, of the fastest of a few."""
    times = []
    for _ in range(HOST_ROUNDS):
        started = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - started))
    return min(times)


def tally() -> Figures:
    """Return how many tables a second one ProgressActor counts for several actors, and the images/s of blocks."""
    progress = start_progress()
    caller = ray.remote(num_cpus=0)(_count_tables)
    ray.get([caller.remote(progress, 10, number) for number in range(CALLERS)])
    started = time.perf_counter()
    ray.get([caller.remote(progress, TALLY_CALLS, number) for number in range(CALLERS)])
    tables_per_s = CALLERS * TALLY_CALLS / (time.perf_counter() - started)
    return {
        "tally: tables/s": tables_per_s,
        f"tally: images/s in batches of {GPU_BATCH}": tables_per_s * GPU_BATCH,
    }


def _count_tables(progress: Any, tables: int, caller: int) -> None:
    """Count tables as a worker does: wait for the answer before each, then report."""
    attempts = ActorAttempts(progress)
    for number in range(tables):
        key = f"{caller}/{number}"
        attempts.begin(key)
        attempts.finish(key)
        progress.add.remote(RunProgress(images=GPU_BATCH, busy_s=0.01))


command = benchmark(
    "host",
    "Measure the host thread of a GPU actor, the driver and the tally around a network that costs nothing.",
    MeasureConfig,
    measure,
    "--count 40000",
)

if __name__ == "__main__":
    main(command)
