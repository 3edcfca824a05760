"""Stop runs of both engines by SIGTERM and by Ctrl-C: the seconds until the process ends, what was decided, committed.

A run stops at its first commit, while most of its processes have only begun; ``soak`` stops runs at random moments.
"""

import os
import signal
import tempfile
from collections import defaultdict
from itertools import product
from pathlib import Path

from jobs.benchmark.machine import Figures, spread
from jobs.terminal.console import main
from pipeline.annotate.reporter import Reporter
from schemas.errors import CamlakeError, Stopped
from schemas.options.benchmark import MeasureConfig
from schemas.options.config import option
from tests.benchmarks.command import benchmark
from tests.benchmarks.soak import STOPS_WITHIN_S
from tests.stopping_jobs import N_IMAGES, stopped_job

ENGINES, SIGNALS = ("local", "ray"), (signal.SIGTERM, signal.SIGINT)


class StopsConfig(MeasureConfig):
    """The configuration of this measurement; of its other options none matters."""

    repeats: int = option(5, "stops of each engine by each signal, in turns", "Options", ge=1, le=20)


def measure(config: StopsConfig, reporter: Reporter) -> Figures:
    """Return the seconds of every stop; raises CamlakeError for one that is late or out of order."""
    took_s = defaultdict(list)
    decided = committed = 0.0
    for _, engine, number in product(range(config.repeats), ENGINES, SIGNALS):
        with tempfile.TemporaryDirectory() as folder:
            ending, run, known = stopped_job(Path(folder), engine, number)
        side = f"{engine}, {number.name}"
        orderly = (ending.status, run.status) == (Stopped.exit_status, "interrupted") and not ending.left
        if not orderly or run.counts.annotated < known or ending.took_s > STOPS_WITHIN_S:
            raise CamlakeError(
                f"{side}, {known:.0f} decided: {ending}, run {run.status}, {run.counts.annotated} committed"
            )
        took_s[side].append(ending.took_s)
        decided, committed = decided + known, committed + run.counts.annotated
        reporter.say(f"{side}: {ending.took_s:.1f} s, {known:.0f} decided, {run.counts.annotated} committed")
    return {
        "images of a run": N_IMAGES,
        "stops": sum(map(len, took_s.values())),
        "most seconds from signal to end": round(max(map(max, took_s.values())), 1),
        **{f"seconds, {side}": spread(values) for side, values in took_s.items()},
        "images decided, committed": [int(decided), int(committed)],
    }


command = benchmark(
    "stops",
    "Stop runs of both engines by SIGTERM and Ctrl-C: the seconds until the process ends, what was committed.",
    StopsConfig,
    measure,
    "--result stops-2cores.json",
    lambda: {"load before": round(os.getloadavg()[0], 2)},
)

if __name__ == "__main__":
    main(command)
