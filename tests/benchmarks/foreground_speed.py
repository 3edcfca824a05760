"""Measure what figure and ground cost: images/s of the whole job with ``--foreground auto`` and with ``off``, in turns.

Both settings annotate the same photographs by the local engine and write the default tables; with ``auto`` the table
foreground too. Each run is a new process. First the settings take turns, and every second repetition begins with the
other one; the ratio of a repetition is the ratio of its two runs at steady state. Then both run at the same time, with
one network each, so that a machine whose speed changes changes it for both; the ratio of a repetition is the ratio of
their rates in the time when both are at their steady state.

The figures have the number of cores that other programs kept busy during each run: where it is more than a few
hundredths, they disturbed the measurement. The CPU time of an image at steady state, of all processes of the job, is
disturbed less than the images/s.
"""

import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from jobs.suites.machine import Figures, spread
from jobs.suites.photographs import make_photographs
from jobs.suites.steady_rate import SilentReporter, annotated_s, steady_per_s
from jobs.terminal.console import main
from pipeline.annotate.reporter import Reporter
from pipeline.graph.annotate.driver import annotate
from schemas.errors import UsageError
from schemas.options.annotate import AnnotateConfig
from schemas.options.benchmark import MeasureConfig
from tests.benchmarks.command import benchmark, in_new_process, resolved_precision
from tests.benchmarks.cpu_by_role import CpuByRole

SETTINGS = ("off", "auto")
_LEAST_TIMES = 8
"""Least number of different times at which images were annotated, for a rate."""


class Run(NamedTuple):
    """The figures of one run."""

    images_per_s: float
    """Images/s at steady state."""
    cpu_ms: float
    """CPU milliseconds of all processes for an image at steady state."""
    others: float
    """Cores that other programs kept busy during the run."""


def measure(config: MeasureConfig, reporter: Reporter) -> Figures:
    """Return images/s of both settings and their ratio; raises UsageError where no direction belongs to the weights."""
    if not config.weights:
        raise UsageError("foreground_speed needs --weights that a figure/ground direction is installed for")
    runs: dict[str, list[Run]] = {setting: [] for setting in SETTINGS}
    with tempfile.TemporaryDirectory() as temporary:
        photographs = Path(temporary) / "photographs"
        make_photographs(config, photographs, config.count)
        job = {"input": str(photographs), "model": config.model, "weights": config.weights}
        job |= {"precision": resolved_precision(config), "device": "cpu", "engine": "local"}
        for repeat in range(config.repeats):
            for setting in SETTINGS[:: -1 if repeat % 2 else 1]:
                out = str(Path(temporary) / f"{setting}-{repeat}")
                runs[setting].append(_run(job | {"foreground": setting, "out": out}))
                reporter.say(f"run {repeat + 1}, --foreground {setting}: {runs[setting][-1]}")
        together = []
        for repeat in range(config.repeats):
            outs = {setting: Path(temporary) / f"both-{setting}-{repeat}" for setting in SETTINGS}
            together.append(_together([job | {"foreground": name, "out": str(out)} for name, out in outs.items()]))
            reporter.say(f"run {repeat + 1}, both at the same time: {together[-1]:.3f}")
    ratios = [fused.images_per_s / plain.images_per_s for plain, fused in zip(runs["off"], runs["auto"], strict=True)]
    costs = [fused.cpu_ms / plain.cpu_ms for plain, fused in zip(runs["off"], runs["auto"], strict=True)]
    found: Figures = {"images": config.count, "precision": resolved_precision(config)}
    for setting, own in runs.items():
        found |= {
            f"--foreground {setting}: images/s": spread([run.images_per_s for run in own]),
            f"--foreground {setting}: CPU ms an image": spread([run.cpu_ms for run in own]),
            f"--foreground {setting}: cores busy with other programs": spread([run.others for run in own]),
        }
    found |= {"ratio of images/s": spread(ratios), "ratio of the CPU ms": spread(costs)}
    return found | {"ratio of images/s, both at the same time": spread(together)}


def _run(job: dict[str, str]) -> Run:
    is_fused, cpu_s, others = in_new_process(_annotate, job)
    if is_fused != (job["foreground"] == "auto"):
        raise UsageError(f"--weights {job['weights']}: no figure/ground direction is installed for them")
    per_s = steady_per_s(annotated_s(Path(job["out"])))
    return Run(per_s, cpu_s * 1e3 / per_s, others)


def _together(jobs: list[dict[str, str]]) -> float:
    """Run two jobs at the same time, and return the second one's images/s divided by the first one's.

    The time that counts is when both jobs are between their first fifth and their last tenth; images/s is the slope of
    the line through the number of images over time. Raises UsageError where there is no such time.
    """
    with ProcessPoolExecutor(len(jobs), mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_annotate, [job | {"actors": "1"} for job in jobs]))
    both_s = [annotated_s(Path(job["out"])) for job in jobs]
    start_s = max(times_s[len(times_s) // 5] for times_s in both_s)
    end_s = min(times_s[len(times_s) * 9 // 10] for times_s in both_s)
    own_s = [[time_s for time_s in times_s if start_s <= time_s <= end_s] for times_s in both_s]
    if any(len(set(times_s)) < _LEAST_TIMES for times_s in own_s):
        raise UsageError("--count: too few images; two runs at the same time have no steady state in common")
    first, second = (np.polyfit(np.subtract(times_s, start_s), np.arange(len(times_s)), 1)[0] for times_s in own_s)
    return float(second / first)


def _annotate(job: dict[str, str]) -> tuple[bool, float, float]:
    """Annotate; return whether the maps were fused, and the busy cores of the job (steady state) and of others."""
    with CpuByRole() as used:
        began, busy_before_s = time.perf_counter(), _busy_s()
        manifest = annotate(AnnotateConfig.model_validate(job), SilentReporter())
        ended, busy_s = time.perf_counter(), _busy_s() - busy_before_s
    others = (busy_s - sum(used.between(began, ended).values())) / (ended - began)
    times_s = annotated_s(Path(job["out"]))
    to_counter = time.perf_counter() - time.time()
    start_s, end_s = (times_s[len(times_s) * tenths // 10] + to_counter for tenths in (2, 9))
    cpu_s = sum(used.between(start_s, end_s).values())
    return bool(manifest.settings["foreground"] != "off"), cpu_s / (end_s - start_s), others


def _busy_s() -> float:
    """Return the seconds that all cores together have been busy since the machine started."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


command = benchmark(
    "foreground_speed",
    "Compare the whole job's images/s with and without figure/ground maps.",
    MeasureConfig,
    measure,
    "--model mobilenet_v2 --weights FILE --images PHOTOS --count 1000",
)

if __name__ == "__main__":
    main(command)
