"""The suite ``gpu``: the actor and the network alone, the cost of maps and boxes, the box kernel, nvJPEG, the job.

It needs CUDA, and nvidia-smi for the share of time that the GPU is busy. A GPU is fast: use ``--count 50000`` or more.
The job and the parts have the same settings: batch size, compiled network, decoding in tasks, no trials.
"""

import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch.nn.functional import avg_pool2d

from jobs.benchmark.decode_tasks import decoded_per_s, fetched_table
from jobs.benchmark.gpu_busy import busy_share, following_busy_share
from jobs.benchmark.machine import Figures, spread
from jobs.benchmark.photographs import make_photographs, photographs_job
from jobs.benchmark.stage_parts import network_parts
from jobs.benchmark.steady_rate import SilentReporter, annotated_s, steady_per_s
from pipeline.annotate.annotate_stage import AnnotateStage
from pipeline.annotate.decode_stage import DecodeSpec, DecodeStage
from pipeline.annotate.gpu_decode_stage import GpuDecodeStage
from pipeline.annotate.model import Model, load_model
from pipeline.annotate.reporter import Reporter
from pipeline.annotate.resources import GPU_BATCH, GPU_CALLS, LOGICAL_PER_CORE, Machine, decoders, plan_compute
from pipeline.annotate.spec import annotate_spec, decode_spec
from pipeline.arrays.boxes import foreground_levels, level_boxes
from pipeline.graph.annotate.driver import annotate
from pipeline.images.nvjpeg import decode_jpegs
from pipeline.models.localize.engine import DTYPES, to_host
from pipeline.models.localize.runtime import resolve_precision
from pipeline.models.weights.state_fitting import load_network
from schemas.errors import ModelError, UsageError
from schemas.options.annotate import AnnotateConfig
from schemas.options.benchmark import BenchmarkConfig

DEVICE = "cuda"
BATCHES = 20
"""Number of forward passes in one timing."""
SAMPLE = 1024
"""Number of photographs that the stages process repeatedly."""
MAPS = 1280
"""Maps of one call of the box kernel: five classes of a batch of 256."""
DECODE_S = 5.0
"""Seconds of one timing of the decode tasks."""
LEAST_COUNT = 20 * GPU_BATCH
"""The fewest images with which a job has a steady state."""
BUSY = "GPU busy share"


def measure(config: BenchmarkConfig, reporter: Reporter) -> Figures:
    """Return images/s, ratios and shares of each repetition; a figure that can't be measured here is the reason why.

    Raises UsageError on a machine without CUDA, and for fewer images than LEAST_COUNT.
    """
    if not torch.cuda.is_available():
        raise UsageError("the suite gpu needs a CUDA device, and this machine has none")
    if config.count < LEAST_COUNT:
        raise UsageError(f"--count {config.count}: allowed for the suite gpu: {LEAST_COUNT} or more")
    notes = _note_of_busy_share()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sample = make_photographs(config, folder / "sample", SAMPLE)
        copies = config.model_copy(update={"images": str(folder / "sample")})
        make_photographs(copies, folder / "photographs", config.count)
        gpus = torch.cuda.device_count()
        chosen = {"compile": "on", "batch_size": GPU_BATCH, "decode": "remote", "actors": (gpus, gpus)}
        job = photographs_job(config, folder, precision=config.precision, device="cuda", **chosen)
        runs: defaultdict[str, list[float]] = defaultdict(list)
        sides, facts = _sides(job, sample)
        for repeat in range(config.repeats):
            for name, timed in sides.items():
                runs[name].append(timed())
            whole = _whole_job(job.model_copy(update={"out": str(folder / f"out-{repeat}")}))
            runs["job images/s"].append(whole.images_per_s)
            if whole.busy_share is None:
                notes.setdefault(BUSY, "left out: nvidia-smi told nothing while the job was at steady state")
            else:
                runs[BUSY].append(whole.busy_share)
            reporter.say(", ".join(f"{name} {values[-1]:.4g}" for name, values in runs.items()))
    if BUSY in notes:
        runs.pop(BUSY, None)
    return _figures(runs, gpus) | facts | notes


def _note_of_busy_share() -> Figures:
    """Return the reason why the busy share can't be measured, where nvidia-smi does not give it."""
    try:
        busy_share()
    except UsageError as error:
        return {BUSY: f"left out: {error}"}
    return {}


def _figures(runs: dict[str, list[float]], gpus: int) -> Figures:
    """Return the spread of all figures, and the ratios of figures from the same repetition."""
    columns = {name: np.array(values) for name, values in runs.items()}
    limits = {"decode tasks": columns["decode tasks images/s"], "actor": gpus * columns["actor images/s"]}
    slowest = min(limits, key=lambda stage: float(np.median(limits[stage])))
    ratios = {
        "actor / bare": columns["actor images/s"] / columns["bare images/s"],
        "actor with one thread / bare": columns["actor with one thread images/s"] / columns["bare images/s"],
        "maps and boxes / forward pass": (columns["no network, maps and boxes s"] - columns["no network s"])
        / columns["network s"],
        "job / its slowest stage": columns["job images/s"] / limits[slowest],
    }
    return {
        **{name: spread(values.tolist()) for name, values in (columns | ratios).items()},
        "slowest stage": slowest,
    }


def _sides(config: AnnotateConfig, photographs: Sequence[Path]) -> tuple[dict[str, Callable[[], float]], Figures]:
    """Compile the networks; return the timings to run in turn, by the name of their figure, and some facts."""
    cores = os.cpu_count() or 1
    machine = Machine(cores * LOGICAL_PER_CORE, max(1, torch.cuda.device_count()), cores)
    model, compute = load_model(config), plan_compute(config, machine)
    spec, size = annotate_spec(config, model, compute.runtime), compute.runtime.batch_size
    decoding, tasks = decode_spec(config, model), decoders(compute, machine)
    fetched, stage = fetched_table(photographs), AnnotateStage(spec, model.weights.state)
    decoded = DecodeStage(decoding, cores)(fetched)
    batches = [decoded.slice(at, size) for at in range(0, len(decoded), size)]
    parts = network_parts(spec, model.weights.state, decoded)
    on_gpu = plan_compute(config.model_copy(update={"decode": "gpu"}), machine)
    nvjpeg, facts = _nvjpeg(decoding, fetched, size, on_gpu.decode_threads)
    sides: dict[str, Callable[[], float]] = {
        "bare images/s": _bare(model, config, size),
        "actor images/s": lambda: _actor(stage, batches, GPU_CALLS),
        "actor with one thread images/s": lambda: _actor(stage, batches, 1),
        **{f"{name} s": partial(_seconds, part.run) for name, part in parts.items()},
        "decode tasks images/s": lambda: decoded_per_s(decoding, photographs, tasks, DECODE_S),
        **nvjpeg,
        "box kernel µs a map": box_kernel(config.threshold),
    }
    return sides, {"decode tasks": tasks} | facts


def _nvjpeg(
    spec: DecodeSpec, fetched: pa.Table, size: int, threads: int
) -> tuple[dict[str, Callable[[], float]], Figures]:
    """Return a timing of ``--decode gpu`` without a network, and the share of photographs that the CPU must decode.

    Where nvJPEG does not work, there is only a figure with the reason.
    """
    try:
        stage = GpuDecodeStage(spec, DEVICE, threads)
    except ModelError as error:
        return {}, {"nvJPEG": f"left out: {error}"}
    batches = [fetched.slice(at, size) for at in range(0, len(fetched), size)]
    first = batches[0]["data"].to_pylist()
    refused = sum(picture is None for picture in decode_jpegs(first, torch.device(DEVICE)))

    def decode(batch: pa.Table) -> None:
        stage(batch)

    def images_per_s() -> float:
        with ThreadPoolExecutor(GPU_CALLS) as pool:

            def all_batches() -> None:
                list(pool.map(decode, batches))
                torch.cuda.synchronize()

            all_batches()  # creates streams and buffers
            return len(fetched) / _seconds(all_batches)

    return {"nvJPEG images/s": images_per_s}, {"nvJPEG refuses": refused / len(first)}


def _bare(model: Model, config: AnnotateConfig, size: int) -> Callable[[], float]:
    """Return a timing of the compiled network alone, with weights in the number type and a batch on the GPU."""
    dtype, side = DTYPES[resolve_precision(config.precision, DEVICE)], model.network.preprocessing.image_size
    network = load_network(model.network.name, model.weights.state, side)
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
    """Return images/s of the stage from decoded tables to rows, run as in the actor."""
    work = [batches[index % len(batches)] for index in range(BATCHES + threads)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(stage, work[:threads]))  # each thread creates its stream and its page-locked memory
        seconds = _seconds(lambda: list(pool.map(stage, work[threads:])))
    return sum(map(len, work[threads:])) / seconds


def box_kernel(thresholds: Sequence[float]) -> Callable[[], float]:
    """Return a timing, in microseconds a map, of the boxes of maps (MAPS, 7, 7) on the GPU."""
    noise = torch.randn(MAPS, 9, 9, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    maps, levels = avg_pool2d(noise, 3, stride=1), torch.tensor(thresholds, device=DEVICE)

    def once() -> None:
        to_host(level_boxes(maps, foreground_levels(maps, levels)))

    def exact_us() -> float:
        once()
        return min(_seconds(once) for _ in range(BATCHES)) / MAPS * 1e6

    return exact_us


@dataclass(frozen=True)
class _Whole:
    images_per_s: float
    """Images/s at steady state."""
    busy_share: float | None
    """Busy share of the GPUs at steady state, from nvidia-smi; None where nvidia-smi gave no value in that time."""


def _whole_job(config: AnnotateConfig) -> _Whole:
    """Return the speed of ``camlake annotate`` with all cores, and the busy share of the GPUs."""
    with following_busy_share() as shares:
        annotate(config, SilentReporter())
    times_s = annotated_s(Path(config.out))
    start_s, end_s = times_s[len(times_s) // 5], times_s[len(times_s) * 9 // 10]
    steady = [share for moment_s, share in shares if start_s <= moment_s <= end_s]
    return _Whole(steady_per_s(times_s), float(np.mean(steady)) if steady else None)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
