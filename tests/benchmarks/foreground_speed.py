"""Measure what figure and ground cost: images/s of the whole job with ``--foreground auto`` and with ``off``, in turns.

Both settings annotate the same photographs by the local engine and write the default tables; with ``auto`` the table
foreground too. Each run is a new process, and every second repetition begins with the other setting. The ratio of a
repetition is the ratio of its two runs at steady state.

The figures have the load before each run: the number of processes that wanted to run, as the system's mean of the last
minute. A load of more than half a process says that other programs disturbed the measurement. The processors' time of
an image, which includes the start of the job, is disturbed less than the images/s.
"""

import os
import resource
import tempfile
from pathlib import Path
from typing import NamedTuple

from jobs.console import main
from jobs.suites.machine import Figures, spread
from jobs.suites.photographs import make_photographs
from jobs.suites.steady_rate import SilentReporter, annotated_s, steady_per_s
from pipeline.annotate.reporter import Reporter
from pipeline.graph.annotate.driver import annotate
from schemas.errors import UsageError
from schemas.options.annotate import AnnotateConfig
from schemas.options.benchmark import MeasureConfig
from tests.benchmarks.command import benchmark, in_new_process, resolved_precision

SETTINGS = ("off", "auto")


class Run(NamedTuple):
    """The figures of one run."""

    images_per_s: float
    """Images/s at steady state."""
    cpu_ms: float
    """Milliseconds of all processors for an image, of the whole run with its start."""
    load: float
    """Processes that wanted to run in the minute before."""


def measure(config: MeasureConfig, reporter: Reporter) -> Figures:
    """Return images/s of both settings and their ratio; raises UsageError where no direction belongs to the weights."""
    if not config.weights:
        raise UsageError("foreground_speed needs --weights that a figure/ground direction is installed for")
    runs: dict[str, list[Run]] = {setting: [] for setting in SETTINGS}
    with tempfile.TemporaryDirectory() as temporary:
        photographs = Path(temporary) / "photographs"
        make_photographs(config, photographs, config.count)
        for repeat in range(config.repeats):
            for setting in SETTINGS[:: -1 if repeat % 2 else 1]:
                job = {
                    "input": str(photographs),
                    "out": str(Path(temporary) / f"{setting}-{repeat}"),
                    "model": config.model,
                    "weights": config.weights,
                    "precision": resolved_precision(config),
                    "device": "cpu",
                    "engine": "local",
                    "foreground": setting,
                }
                runs[setting].append(_run(job, config.count))
                reporter.say(f"run {repeat + 1}, --foreground {setting}: {runs[setting][-1]}")
    ratios = [fused.images_per_s / plain.images_per_s for plain, fused in zip(runs["off"], runs["auto"], strict=True)]
    costs = [fused.cpu_ms / plain.cpu_ms for plain, fused in zip(runs["off"], runs["auto"], strict=True)]
    found: Figures = {"images": config.count, "precision": resolved_precision(config)}
    for setting, own in runs.items():
        found |= {
            f"--foreground {setting}: images/s": spread([run.images_per_s for run in own]),
            f"--foreground {setting}: processors' ms an image": spread([run.cpu_ms for run in own]),
            f"--foreground {setting}: load before": spread([run.load for run in own]),
        }
    return found | {"ratio of images/s": spread(ratios), "ratio of the processors' ms": spread(costs)}


def _run(job: dict[str, str], images: int) -> Run:
    load, before_s = os.getloadavg()[0], _children_s()
    fused = in_new_process(_annotate, job)
    if fused != (job["foreground"] == "auto"):
        raise UsageError(f"--weights {job['weights']}: no figure/ground direction is installed for them")
    return Run(steady_per_s(annotated_s(Path(job["out"]))), (_children_s() - before_s) * 1e3 / images, load)


def _annotate(job: dict[str, str]) -> bool:
    """Annotate and return whether the boxes were cut from fused maps."""
    manifest = annotate(AnnotateConfig.model_validate(job), SilentReporter())
    return bool(manifest.settings["foreground"] != "off")


def _children_s() -> float:
    """Return the processors' seconds of all processes that this one and its children have waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


command = benchmark(
    "foreground_speed",
    "Compare the whole job's images/s with and without figure/ground maps.",
    MeasureConfig,
    measure,
    "--model mobilenet_v2 --weights FILE --images PHOTOS --count 1000",
)

if __name__ == "__main__":
    main(command)
