"""Compare the duration that a dry run predicts with that of the run, on Ray; other work on the machine moves both."""

import tempfile
import time
from pathlib import Path

from jobs.benchmark.machine import Figures, spread
from jobs.benchmark.photographs import make_photographs, weights_file
from jobs.benchmark.steady_rate import SilentReporter
from jobs.terminal.console import Screen, main
from jobs.terminal.dry_run import print_estimate
from pipeline.graph.annotate.driver import annotate
from schemas.options.annotate import AnnotateConfig
from schemas.options.benchmark import MeasureConfig
from tests.benchmarks.command import benchmark


def measure(config: MeasureConfig, screen: Screen) -> Figures:
    """Return the predicted and the actual durations, and the ratios of each repetition."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_photographs(config, folder / "images", config.count)
        run = {"input": str(folder / "images"), "model": config.model, "weights": weights_file(config, folder)}
        predicted, actual = [], []
        for repeat in range(config.repeats):
            job = {**run, "engine": "ray", "precision": config.precision, "out": str(folder / f"out-{repeat}")}
            found = print_estimate(AnnotateConfig.resolve({**job, "dry_run": True}), screen)
            assert found, "a new output has everything to do"
            predicted.append(found.prediction.duration_s)
            started = time.monotonic()
            annotate(AnnotateConfig.resolve(job), SilentReporter())
            actual.append(time.monotonic() - started)
    return {
        "images": config.count,
        "predicted s": spread(predicted),
        "actual s": spread(actual),
        "predicted / actual": spread([one / other for one, other in zip(predicted, actual, strict=True)]),
    }


command = benchmark(
    "prediction",
    "Compare the duration that a dry run predicts with that of the run.",
    MeasureConfig,
    measure,
    "--images PHOTOS --weights FILE --count 1000",
)

if __name__ == "__main__":
    main(command)
