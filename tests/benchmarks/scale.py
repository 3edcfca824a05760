"""Find where the driver, the planner or the commit becomes the limit: the real job around networks that only wait.

Simulated: the network's time and values (tests.benchmarks.fake_network), Ray's GPUs and nodes, the object store
(tests.benchmarks.fake_store). Real: listing, planning, Ray's scheduling, decoding, the boxes, commits. Pictures are
tiny, so that two cores can drive a graph that normally needs many cores; the traffic between machines is therefore
not measured. The driver's CPU seconds a block do not depend on the number of busy cores, so they give the number of
images/s that one core for the driver could sustain.
"""

import http.client
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import pyarrow as pa

from jobs.benchmark.machine import Figures
from jobs.benchmark.memory import peak_bytes
from jobs.benchmark.photographs import make_photographs
from jobs.terminal.console import main
from pipeline.annotate.input_plan import images_per_slice
from pipeline.annotate.reporter import Reporter
from pipeline.storage.filesystems import connect
from pipeline.storage.inputs.listing import list_inputs
from pipeline.storage.lake.commit import done_images, remove_leftovers
from pipeline.storage.lake.integrity.verify import verify
from pipeline.storage.lake.plan.planning import make_plan
from pipeline.storage.lake.records import load_commits
from schemas.errors import CamlakeError
from schemas.options.annotate import AnnotateConfig
from schemas.options.benchmark import MeasureConfig
from schemas.options.config import StorageConfig
from tests.benchmarks.command import benchmark
from tests.benchmarks.cpu_by_role import DRIVER
from tests.benchmarks.fake_network import FakeGpu
from tests.benchmarks.fake_store import BUCKET, PAGE_KEYS, StoreSpec, fake_store
from tests.benchmarks.simulation import Simulated, simulate, simulated_cluster

GPU_IMAGES_PER_S = 10_000.0
"""About the images/s of one H100 with ResNet-50 in bf16 at 224 pixels."""
TINY_PX = 48
NODES, GPUS_A_NODE = 2, 4
SMALL_BATCH = 16
"""Images of a batch and of a commit in the run that measures the control path; a block has two batches."""
KEYS_PER_COUNT, IMAGES_PER_COUNT, SMALL_PER_COUNT = 500, 10, 8
"""For each unit of ``--count``: listed keys, images of the normal run, images of the run with small blocks."""
PROBES = 500
"""Number of requests that measure the limit of the store itself."""

_Result = TypeVar("_Result")


def measure(config: MeasureConfig, reporter: Reporter) -> Figures:
    """Return the costs of listing, planning, the running graph and the commits, and the limits that follow."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        body = tiny_picture(folder / "one")
        figures: Figures = {}
        for keys in (config.count * KEYS_PER_COUNT // 10, config.count * KEYS_PER_COUNT):
            figures |= listing(keys, body, folder / f"plan-{keys}")
            reporter.say(f"{keys} keys listed and planned")
        with simulated_cluster(NODES, GPUS_A_NODE) as address:
            large = annotate_tiny(folder / "large", address, body, config.count * IMAGES_PER_COUNT)
            figures |= control_path("as planned", large) | sustained("as planned", large)
            reporter.say("blocks as planned: done")
            small = annotate_tiny(folder / "small", address, body, config.count * SMALL_PER_COUNT, SMALL_BATCH)
            figures |= control_path("small blocks", small) | sustained("small blocks", small)
            reporter.say("small blocks: done")
        return figures | commits(folder / "small" / "out", small)


def tiny_picture(folder: Path) -> bytes:
    """Return a JPEG of TINY_PX pixels a side, rendered in ``folder``."""
    (picture,) = make_photographs(MeasureConfig(), folder, 1, (TINY_PX, TINY_PX))
    return picture.read_bytes()


def listing(keys: int, body: bytes, root: Path) -> Figures:
    """Return keys/s of listing and of planning ``keys`` objects, and the peak memory so far."""
    with fake_store(StoreSpec(keys), body) as endpoint:
        limit = _store_limit(endpoint)
        storage = StorageConfig(endpoint_url=endpoint, anonymous=True)
        config = AnnotateConfig(input=f"s3://{BUCKET}/photos/", out=str(root))
        inputs = list_inputs(config.input, storage)
        clock = _Clock(inputs.batches)
        inputs.batches = clock.batches()
        fs, path = connect(config.out, storage)
        plan, took_s = _timed(lambda: make_plan(inputs, [], fs, path, "plan", rows_per_slice=images_per_slice(config)))
    if plan.counts.planned != keys:
        raise CamlakeError(f"{keys} keys, but {plan.counts.planned} are planned")
    return {
        f"{keys} keys: listed per s": keys / clock.spent_s,
        f"{keys} keys: planned per s": keys / (took_s - clock.spent_s),
        f"{keys} keys: driver's peak MiB so far": peak_bytes() / 2**20,
        f"{keys} keys: read tasks": len(plan.slices),
        **limit,
    }


class _Clock:
    """An iterator over batches that adds up the seconds spent waiting for them."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self.spent_s = 0.0

    def batches(self) -> Iterator[pa.RecordBatch]:
        while True:
            batch, took_s = _timed(lambda: next(self._batches, None))
            self.spent_s += took_s
            if batch is None:
                return
            yield batch


def _store_limit(endpoint: str) -> Figures:
    """Return keys/s and objects/s of the store itself, with one plain HTTP client."""
    connection = http.client.HTTPConnection(urlsplit(endpoint).netloc)

    def ask(path: str) -> None:
        connection.request("GET", path)
        connection.getresponse().read()

    ask(f"/{BUCKET}?list-type=2")
    _, listing_s = _timed(lambda: [ask(f"/{BUCKET}?list-type=2&prefix=photos/") for _ in range(PROBES // 10)])
    _, getting_s = _timed(lambda: [ask(f"/{BUCKET}/photos/000000/{0:010d}.jpg") for _ in range(PROBES)])
    connection.close()
    return {
        "store: keys listed per s, one plain client": PROBES // 10 * PAGE_KEYS / listing_s,
        "store: objects read per s, one plain client": PROBES / getting_s,
    }


def _timed(work: Callable[[], _Result]) -> tuple[_Result, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def annotate_tiny(
    folder: Path, address: str, body: bytes, count: int, batch: int | None = None, per_commit: int | None = None
) -> Simulated:
    """Annotate ``count`` tiny pictures on the simulated cluster.

    A batch has ``batch`` images and a block two batches; a commit has ``per_commit`` images, or those of a batch.
    Without ``batch`` the job decides.
    """
    images = folder / "images"
    images.mkdir(parents=True)
    for index in range(count):
        (images / f"{index:08d}.jpg").write_bytes(body)
    gpu = FakeGpu(GPU_IMAGES_PER_S, image_size=TINY_PX)
    config = AnnotateConfig(
        input=str(images),
        out=str(folder / "out"),
        image_size=TINY_PX,
        address=address,
        batch_size=batch,
        images_per_commit=per_commit or batch,
    )
    return simulate(config, gpu, batch)


def control_path(name: str, run: Simulated) -> Figures:
    """Return a run's speed on this machine, its CPU time by role, and the driver's part."""
    steady = run.steady()
    driver_s = steady.cpu_s[DRIVER]
    return {
        f"{name}: images in a block": run.manifest.counts.planned / run.blocks,
        f"{name}: images/s here": steady.images / steady.took_s,
        f"{name}: blocks/s here": steady.blocks / steady.took_s,
        **{f"{name}: CPU us an image, {role}": 1e6 * cpu_s / steady.images for role, cpu_s in steady.cpu_s.items()},
        f"{name}: driver's CPU ms a block": 1e3 * driver_s / steady.blocks,
        f"{name}: driver's share of a core here": driver_s / steady.took_s,
    }


def sustained(name: str, run: Simulated) -> Figures:
    """Return the images/s that one core for the driver allows, where all of its CPU time counts for the blocks.

    A part of that time does not depend on the blocks (see ``tests.benchmarks.host``), so this is a lower bound.
    """
    steady = run.steady()
    return {f"{name}: images/s that one core for the driver sustains": steady.images / steady.cpu_s[DRIVER]}


def commits(out: Path, run: Simulated) -> Figures:
    """Return the seconds that many commits cost at the end of their run, at the start of the next run and in verify."""
    fs, root = connect(str(out), StorageConfig())
    n_commits = len(load_commits(fs, root, run.manifest.run_id))
    _, leftovers_s = _timed(lambda: remove_leftovers(fs, root))
    done, done_s = _timed(lambda: sum(len(batch) for batch in done_images(fs, root, run.manifest.model)))
    report, verify_s = _timed(lambda: verify(fs, root))
    if report.problems or done != run.manifest.counts.planned:
        raise CamlakeError(f"{out}: {done} images done; {'; '.join(report.problems)}")
    times = {"finish the run": run.finish_s, "clear up before the next": leftovers_s}
    times |= {"find what is done": done_s, "verify": verify_s}
    where = f"{n_commits} commits, {len(run.manifest.files)} files"
    return {f"{where}: s to {what}": took_s for what, took_s in times.items()}


command = benchmark(
    "scale",
    "Measure the driver, the planner and the commits on a simulated cluster and a simulated store.",
    MeasureConfig,
    measure,
    "--count 4000",
)

if __name__ == "__main__":
    main(command)
