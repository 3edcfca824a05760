"""The GPU's side: the actor against the bare network, what maps and boxes cost, the box kernel, the whole job.

Needs CUDA, and nvidia-smi for the share of time that the GPU is busy. A GPU is fast: use ``--count 50000`` or more.
"""

import os
import subprocess
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from jobs.annotate import annotate
from jobs.console import Screen
from jobs.suites.common import (
    PHOTO_HW,
    Figures,
    Watch,
    annotated_s,
    make_photographs,
    photographs_job,
    spread,
    steady_per_s,
)
from jobs.suites.opencv_boxes import THRESHOLD, component_boxes, smooth_maps, upsampled
from jobs.suites.stage_parts import network_parts
from pipeline.arrays.boxes import foreground_levels, level_boxes
from pipeline.graph.annotating import AnnotateStage
from pipeline.graph.decoding import DecodeStage
from pipeline.graph.job import Model, annotate_spec, decode_spec, load_model
from pipeline.graph.resources import Machine, plan_compute
from pipeline.graph.source import FETCHED
from pipeline.graph.stream import TABLES_AT_A_TIME
from pipeline.models.engine import DTYPES, to_host
from pipeline.models.loading import load_network
from pipeline.models.runtime import resolve_precision
from schemas.annotate import AnnotateConfig
from schemas.benchmark import BenchmarkConfig
from schemas.errors import UsageError

DEVICE = "cuda"
BATCHES = 20
"""Forward passes of one timing."""
SAMPLE = 1024
"""Photographs that the stages work on again and again."""
MAPS = 1280
"""Five classes of a batch of 256."""
BUSY_EVERY_S = 0.5


def measure(config: BenchmarkConfig, screen: Screen) -> Figures:
    """Return images/s, ratios and shares run by run; raises UsageError on a machine without CUDA."""
    if not torch.cuda.is_available():
        raise UsageError("the suite gpu needs a CUDA device, and this machine has none")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        photographs = make_photographs(config, folder / "photographs", config.count)
        job = photographs_job(config, folder, precision=config.precision, device="cuda", compile="on")
        runs: defaultdict[str, list[float]] = defaultdict(list)
        sides = _sides(job, photographs[:SAMPLE])
        for repeat in range(config.repeats):
            for name, timed in sides.items():
                runs[name].append(timed())
            whole = _whole_job(job.model_copy(update={"out": str(folder / f"out-{repeat}")}))
            runs["job images/s"].append(whole.images_per_s)
            runs["GPU busy share"].append(whole.busy_share)
            screen.say(", ".join(f"{name} {values[-1]:.4g}" for name, values in runs.items()))
    return _figures(runs)


def _figures(runs: dict[str, list[float]]) -> Figures:
    """Return the spread of everything, and the ratios that the runs' own neighbours give."""
    columns = {name: np.array(values) for name, values in runs.items()}
    limits = {stage: columns[f"{stage} images/s"] for stage in ("decode on all cores", "actor")}
    slowest = min(limits, key=lambda stage: float(np.median(limits[stage])))
    ratios = {
        "actor / bare": columns["actor images/s"] / columns["bare images/s"],
        "actor with one thread / bare": columns["actor with one thread images/s"] / columns["bare images/s"],
        "maps and boxes / forward pass": (columns["no network, maps and boxes s"] - columns["no network s"])
        / columns["network s"],
        "OpenCV / box kernel": columns["OpenCV µs a map"] / columns["box kernel µs a map"],
        "job / its slowest stage": columns["job images/s"] / limits[slowest],
    }
    return {
        **{name: spread(values.tolist()) for name, values in (columns | ratios).items()},
        "slowest stage": slowest,
    }


def _sides(config: AnnotateConfig, photographs: list[Path]) -> dict[str, Callable[[], float]]:
    """Return what is timed in turn, by the name of its figure; what there is to compile is compiled here."""
    cores = os.cpu_count() or 1
    model = load_model(config)
    compute = plan_compute(config, Machine(cores, max(1, torch.cuda.device_count()), cores))
    spec, size = annotate_spec(config, model, compute), compute.runtime.batch_size
    rows = [{"image_id": path.stem, "uri": str(path), "data": path.read_bytes()} for path in photographs]
    fetched = pa.Table.from_pylist(rows, schema=FETCHED)
    decoding, stage = DecodeStage(decode_spec(config, model), cores), AnnotateStage(spec, model.weights.state)
    decoded = decoding(fetched)
    batches = [decoded.slice(at, size) for at in range(0, len(decoded), size)]
    parts = network_parts(spec, model.weights.state, decoded)
    return {
        "bare images/s": _bare(model, config, size),
        "actor images/s": lambda: _actor(stage, batches, TABLES_AT_A_TIME),
        "actor with one thread images/s": lambda: _actor(stage, batches, 1),
        **{f"{name} s": lambda part=part: _seconds(part.run) for name, part in parts.items()},
        "decode on all cores images/s": lambda: len(decoded) / _seconds(lambda: decoding(fetched)),
        **_box_kernel(),
    }


def _bare(model: Model, config: AnnotateConfig, size: int) -> Callable[[], float]:
    """Return what times the network alone: compiled, its weights in the number type, one batch that is on the GPU."""
    dtype, side = DTYPES[resolve_precision(config.precision, DEVICE)], model.network.preprocessing.image_size
    network = load_network(config.model, model.weights.state, side)
    layers = torch.nn.Sequential(network.trunk, network.head).to(DEVICE, dtype).to(memory_format=torch.channels_last)
    compiled = torch.compile(layers, fullgraph=True, dynamic=False)
    inputs = torch.randn(size, 3, side, side, device=DEVICE, dtype=dtype).to(memory_format=torch.channels_last)

    def images_per_s() -> float:
        with torch.no_grad():
            to_host([compiled(inputs).logits.float()])
            seconds = _seconds(lambda: to_host([[compiled(inputs) for _ in range(BATCHES)][-1].logits.float()]))
        return BATCHES * size / seconds

    return images_per_s


def _actor(stage: AnnotateStage, batches: list[pa.Table], threads: int) -> float:
    """Return images/s of the stage from decoded tables to rows, as the actor runs it."""
    work = [batches[index % len(batches)] for index in range(BATCHES + threads)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(stage, work[:threads]))  # each thread's stream and page-locked memory
        seconds = _seconds(lambda: list(pool.map(stage, work[threads:])))
    return sum(map(len, work[threads:])) / seconds


def _box_kernel() -> dict[str, Callable[[], float]]:
    grids = smooth_maps(MAPS, 7, 1.0)
    maps, thresholds = torch.from_numpy(grids).to(DEVICE), torch.tensor([THRESHOLD], device=DEVICE)

    def exact_us() -> float:
        def once() -> None:
            to_host(level_boxes(maps, foreground_levels(maps, thresholds)))

        once()
        return min(_seconds(once) for _ in range(BATCHES)) / MAPS * 1e6

    def opencv_us() -> float:
        def once() -> None:
            for grid in grids:
                surface = upsampled(grid, PHOTO_HW)
                component_boxes(surface, THRESHOLD * float(surface.max()))

        return _seconds(once) / MAPS * 1e6

    return {"box kernel µs a map": exact_us, "OpenCV µs a map": opencv_us}


@dataclass(frozen=True)
class _Whole:
    images_per_s: float
    """At steady state."""
    busy_share: float
    """Of the GPUs, by nvidia-smi, at steady state."""


def _whole_job(config: AnnotateConfig) -> _Whole:
    """Return how fast ``camlake annotate`` is with all cores, and how busy it keeps the GPUs."""
    with _gpu_busy() as shares:
        annotate(config, Watch())
    times_s = annotated_s(Path(config.out))
    start_s, end_s = times_s[len(times_s) // 5], times_s[len(times_s) * 9 // 10]
    steady = [share for moment_s, share in shares if start_s <= moment_s <= end_s]
    return _Whole(steady_per_s(times_s), float(np.mean(steady)) if steady else float("nan"))


@contextmanager
def _gpu_busy() -> Iterator[list[tuple[float, float]]]:
    """Give a list that fills, while the block runs, with moments and the share of the GPUs' time that kernels took."""
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    shares: list[tuple[float, float]] = []
    stop = threading.Event()

    def follow() -> None:
        while not stop.wait(BUSY_EVERY_S):
            lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            shares.append((time.time(), float(np.mean([float(line) for line in lines])) / 100))

    thread = threading.Thread(target=follow, name="gpu-busy", daemon=True)
    thread.start()
    try:
        yield shares
    finally:
        stop.set()
        thread.join()


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
