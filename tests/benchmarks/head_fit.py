"""Measure ``camlake head fit`` on many rows: its CPU time and memory, and whether it finds a known head.

The features look like pooled ones: none is negative, their scales differ a hundredfold, and neighbours are alike. A
known sparse head on the standardized features, with noise on its logits, decides the labels. So the best possible
figures are known: those of the known head on the same rows.
"""

import resource
import time

import numpy as np
from numpy.typing import NDArray

from jobs.benchmark.machine import Figures
from jobs.terminal.console import Screen, main
from pipeline.arrays.ranking import roc_auc
from pipeline.models.weights.head_file import Kind
from pipeline.outputs.heads.fitting import Standardized, fit_class
from schemas.options.benchmark import MeasureConfig
from schemas.options.config import option
from tests.benchmarks.command import benchmark, in_new_process

ACTIVE = 60
"""Features that the known head looks at."""
NOISE = 1.0
"""Deviation of the noise on the logits; that of the logits themselves is 2."""
TEST_ROWS = 10_000
"""Rows beside those of the fit, on which the fitted and the known head are compared."""


class HeadFitConfig(MeasureConfig):
    """The options of the measurement."""

    rows: int = option(100_000, "labelled images", "Options", ge=100)
    features: int = option(1280, "values of a feature vector", "Options", ge=ACTIVE)
    share: float = option(0.1, "share of images that have the class", "Options", gt=0, lt=1)
    kind: Kind = option("logistic", "logistic regression or linear SVM", "Options")


def measure(config: HeadFitConfig, screen: Screen) -> Figures:
    """Return CPU seconds, memory and figures of a fit in a process of its own."""
    screen.say(f"{config.rows} rows of {config.features} features")
    return in_new_process(fit, config.rows, config.features, config.share, config.kind)


def fit(rows: int, features: int, share: float, kind: Kind) -> Figures:
    """Make the rows, fit a head to them, and return the figures."""
    rng = np.random.default_rng(0)
    values, positive, known = problem(rng, rows + TEST_ROWS, features, share)
    test, truth = values[rows:].copy(), positive[rows:]
    own, labels = values[:rows].copy(), positive[:rows]
    del values
    before = peak_bytes()
    cpu, wall = time.process_time(), time.perf_counter()
    standardized = Standardized(own)
    found = fit_class(standardized, labels, kind)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    once = np.ones((1, TEST_ROWS))
    best = (test - standardized.mean) / standardized.scale @ known
    scaled = found.weight * standardized.scale
    return {
        "rows": rows,
        "features": features,
        "kind": kind,
        "positives": int(labels.sum()),
        "CPU seconds of the fit": cpu,
        "seconds of the fit": wall,
        "peak memory with the rows: GB": peak_bytes() / 1e9,
        "peak memory before the fit: GB": before / 1e9,
        "chosen C": found.strength,
        "came to rest": found.converged,
        "cosine of the fitted and the known head": float(
            scaled @ known / np.linalg.norm(scaled) / np.linalg.norm(known)
        ),
        "AUC on other rows, fitted head": float(roc_auc(test @ found.weight, truth, once)[0]),
        "AUC on other rows, known head": float(roc_auc(best, truth, once)[0]),
        "AUC on held-out folds, as the card says": found.figures["auc"].value,
    }


def problem(
    rng: np.random.Generator, rows: int, features: int, share: float
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float64]]:
    """Return features (N, K) float32, labels (N,), and the known head (K,) for standardized features."""
    values = rng.standard_normal((rows, features), np.float32)
    values[:, 1:] += 0.6 * values[:, :-1]
    np.maximum(values, 0, out=values)
    scales = np.exp(rng.uniform(np.log(0.05), np.log(5), features)).astype(np.float32)
    values *= scales
    known = np.zeros(features)
    known[rng.choice(features, ACTIVE, replace=False)] = rng.standard_normal(ACTIVE)
    logits = (values - values.mean(axis=0)) / values.std(axis=0) @ known
    logits *= 2 / logits.std()
    noisy = logits + NOISE * rng.standard_normal(rows)
    return values, noisy > np.quantile(noisy, 1 - share), known


def peak_bytes() -> int:
    """Return the greatest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


command = benchmark(
    "head_fit",
    "Measure head fit on many rows: time, memory, and the head it finds.",
    HeadFitConfig,
    measure,
    "--rows 100000",
)

if __name__ == "__main__":
    main(command)
