"""Measure images/s of the whole job at steady state, in turn with two loops in one process and the network alone.

One loop writes the same tables, with boxes by OpenCV; the other keeps no results. The network alone repeats forward
passes of a batch in memory, in plain PyTorch and in camlake's engine. All use the job's number type.
"""

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from jobs.benchmark.machine import Figures, spread
from jobs.benchmark.photographs import make_photographs
from jobs.benchmark.steady_rate import annotated_s, steady_per_s
from jobs.terminal.console import main
from pipeline.annotate.reporter import Reporter
from schemas.options.benchmark import MeasureConfig
from tests.benchmarks.command import benchmark, in_new_process
from tests.benchmarks.peers import own_job
from tests.benchmarks.peers.comparison import setup_in
from tests.benchmarks.peers.loops import bare_loop, hand_loop
from tests.benchmarks.peers.network_alone import network_alone
from tests.benchmarks.peers.setup import Setup

LOOP_IMAGES = 640
"""Images of one run of a loop: enough for a few seconds. A loop has no start-up that must be left out."""


class JobRun(NamedTuple):
    """The figures of one run of the job."""

    images_per_s: float
    """Images/s at steady state."""
    first_image_s: float
    """Seconds from the start of the process to the first annotated image."""
    first_commit_s: float


def measure(config: MeasureConfig, reporter: Reporter) -> Figures:
    """Return images/s of ``camlake annotate`` (all tables), both loops and the network alone, and the ratios."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_photographs(config, folder / "photographs", config.count)
        make_photographs(config, folder / "few", min(config.count, LOOP_IMAGES))
        setup = setup_in(config, folder)
        jobs, tables, bare, alone, engine = [], [], [], [], []
        for repeat in range(config.repeats):
            before = _loops(setup, folder / "few", f"{repeat}-before")
            jobs.append(_job(dataclasses.replace(setup, out=str(folder / f"job-{repeat}"))))
            after = _loops(setup, folder / "few", f"{repeat}-after")
            tables.append((before[0] + after[0]) / 2)
            bare.append((before[1] + after[1]) / 2)
            alone.append(network_alone(setup, "pytorch"))
            engine.append(network_alone(setup, "engine"))
            reporter.say(
                f"run {repeat + 1}: {jobs[-1].images_per_s:.1f} images/s, by hand {tables[-1]:.1f}, "
                f"by hand without outputs {bare[-1]:.1f}; the network alone in PyTorch {alone[-1]:.1f}, "
                f"in the engine {engine[-1]:.1f}"
            )
    rates = [run.images_per_s for run in jobs]
    return {
        "images": config.count,
        "precision": setup.precision,
        "job images/s": spread(rates),
        "loop images/s": spread(tables),
        "loop without outputs images/s": spread(bare),
        "ratio": _ratios(rates, tables),
        "ratio to the loop without outputs": _ratios(rates, bare),
        "network alone in PyTorch images/s": spread(alone),
        "network alone in the engine images/s": spread(engine),
        "ratio to the network alone in PyTorch": _ratios(rates, alone),
        "ratio to the network alone in the engine": _ratios(rates, engine),
        "first image s": spread([run.first_image_s for run in jobs]),
        "first commit s": spread([run.first_commit_s for run in jobs]),
    }


def _ratios(rates: list[float], others: list[float]) -> Figures:
    return spread([ours / theirs for ours, theirs in zip(rates, others, strict=True)])


def _loops(setup: Setup, photographs: Path, name: str) -> tuple[float, float]:
    """Return images/s of the loop with tables and of the loop without outputs."""
    setup = dataclasses.replace(setup, photographs=str(photographs), out=f"{setup.out}/{name}")
    return in_new_process(hand_loop, setup), in_new_process(bare_loop, setup)


def _job(setup: Setup) -> JobRun:
    started_s = time.time()
    own_job.run(setup)
    times_s = annotated_s(Path(setup.out))
    commits_s = [path.stat().st_mtime for path in Path(setup.out).glob("_runs/*/commits/*.json")]
    return JobRun(steady_per_s(times_s), times_s[0] - started_s, min(commits_s) - started_s)


command = benchmark(
    "end_to_end",
    "Compare the whole job's images/s with loops written by hand, and with the network alone.",
    MeasureConfig,
    measure,
    "--images PHOTOS --weights FILE --count 2100",
)

if __name__ == "__main__":
    main(command)
