"""Compare the local engine with Ray on one machine: the first commit of a small run, and a larger run to its end.

Each run is a command of its own, and both engines take turns.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal, NamedTuple

import psutil

from jobs.benchmark.machine import Figures, spread
from jobs.benchmark.photographs import make_photographs, weights_file
from jobs.benchmark.steady_rate import annotated_s, steady_per_s
from jobs.terminal.console import main
from pipeline.annotate.reporter import Reporter
from schemas.errors import CamlakeError
from schemas.options.benchmark import MeasureConfig
from tests.benchmarks.command import benchmark, resolved_precision

FEW = 300
"""Images of the small run."""
_LOOK_S = 0.2

Engine = Literal["local", "ray"]
ENGINES: tuple[Engine, ...] = ("local", "ray")


class Run(NamedTuple):
    """The figures of one command."""

    first_commit_s: float
    """Seconds from the start of the command to its first commit record."""
    whole_s: float
    """Seconds from the start of the command to its end."""
    cpu_s: float
    """CPU seconds of the command and all its processes."""
    steady_per_s: float
    """Images/s between the first fifth and the last tenth of the images."""


def measure(config: MeasureConfig, reporter: Reporter) -> Figures:
    """Return the figures of both engines and their ratios, run by run."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sizes = {"few": FEW, "many": config.count}
        for name, count in sizes.items():
            make_photographs(config, folder / name, count)
        options = ["--model", config.model, "--weights", weights_file(config, folder)]
        options += ["--precision", resolved_precision(config), "--device", "cpu"]
        runs: dict[tuple[str, Engine], list[Run]] = {(name, engine): [] for name in sizes for engine in ENGINES}
        for repeat in range(config.repeats):
            for name in sizes:
                for engine in ENGINES:
                    runs[name, engine].append(
                        _run(folder / name, folder / f"{name}-{engine}-{repeat}", engine, options)
                    )
                    reporter.say(f"{name} {engine}: {runs[name, engine][-1]}")
    return {"images": sizes, "precision": resolved_precision(config)} | {
        f"{name}: {what} {side}": spread(values)
        for name in sizes
        for what in Run._fields
        for side, values in _sides([runs[name, engine] for engine in ENGINES], what).items()
    }


def _sides(runs: list[list[Run]], what: str) -> dict[str, list[float]]:
    ours, theirs = ([float(getattr(run, what)) for run in side] for side in runs)
    return {"local": ours, "ray": theirs, "ratio": [one / other for one, other in zip(ours, theirs, strict=True)]}


def _run(images: Path, out: Path, engine: Engine, options: list[str]) -> Run:
    words = [sys.executable, "-m", "jobs.annotate", str(images), "--out", str(out), "--engine", engine, *options]
    started, first, used = time.time(), 0.0, _CpuSeconds()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        used.look(process.pid)
        if not first and any(out.glob("_runs/*/commits/*.json")):
            first = time.time() - started
        time.sleep(_LOOK_S)
    whole = time.time() - started
    assert process.stderr
    if process.returncode:
        raise CamlakeError(f"annotate --engine {engine} failed: {process.stderr.read().strip()}")
    return Run(round(first, 2), round(whole, 2), round(used.total, 1), round(steady_per_s(annotated_s(out)), 1))


class _CpuSeconds:
    """The CPU seconds of a process and of its descendants, also of those in a session of their own, by looks."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, float], float] = {}

    def look(self, pid: int) -> None:
        """Note what each living process has used so far; the last look at a process counts."""
        try:
            family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in family:
            try:
                times = process.cpu_times()
                self._seen[process.pid, process.create_time()] = times.user + times.system
            except psutil.NoSuchProcess:
                continue

    @property
    def total(self) -> float:
        """Return the sum over all processes."""
        return sum(self._seen.values())


command = benchmark(
    "engines",
    "Compare the local engine with Ray: first commit, whole run, CPU seconds and steady state.",
    MeasureConfig,
    measure,
    "--images PHOTOS --model mobilenet_v2 --weights FILE --count 2000",
    lambda: {"load before": round(os.getloadavg()[0], 2)},
)

if __name__ == "__main__":
    main(command)
