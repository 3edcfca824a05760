"""How well scores rank positives before negatives: areas under curves, the F0.5 threshold, bootstrap intervals.

N rows with a score and a truth, ``positive``; ``times`` (B, N) says how often each of B resamplings drew each row.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.metrics import Bools, Floats

RESAMPLES = 500
"""Resamplings of an interval."""
_CELLS_AT_ONCE = 2_000_000
_TAILS = (0.025, 0.975)
F_BETA = 0.5
"""F0.5 weighs precision twice as much as recall: who filters millions of images wants few wrong ones."""


class Interval(NamedTuple):
    """A figure with its 95 % bootstrap interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


def roc_auc(scores: Floats, positive: Bools, times: Floats) -> Floats:
    """Return (B,): the share of pairs of a positive and a negative that ``scores`` (N,) order rightly; ties count half.

    NaN where a resampling has no positive or no negative.
    """
    starts, order = _ties(scores)
    hits, misses = _grouped(times, positive, order, starts)
    below = misses.cumsum(axis=1) - misses
    pairs = hits.sum(axis=1) * misses.sum(axis=1)
    return _divided((hits * (below + misses / 2)).sum(axis=1), pairs)


def average_precision(scores: Floats, positive: Bools, times: Floats) -> Floats:
    """Return (B,): the mean over the positives of the precision among all rows with at least their score.

    NaN where a resampling has no positive.
    """
    starts, order = _ties(-scores)
    hits, misses = _grouped(times, positive, order, starts)
    precision = _divided(hits.cumsum(axis=1), (hits + misses).cumsum(axis=1))
    return _divided(np.nansum(hits * precision, axis=1), hits.sum(axis=1))


def best_threshold(scores: Floats, positive: Bools) -> float:
    """Return the score from which on a row shall count as positive, so that F0.5 is greatest.

    Of equally good thresholds the highest is returned. Without a positive it is the greatest score plus 1.
    """
    starts, order = _ties(-scores)
    hits, misses = _grouped(np.ones((1, len(scores))), positive, order, starts)
    right, found, wanted = hits[0].cumsum(), (hits + misses)[0].cumsum(), float(positive.sum())
    f_score = _divided((1 + F_BETA**2) * right, found + F_BETA**2 * wanted)
    if not wanted:
        return float(scores.max(initial=0.0) + 1)
    return float(scores[order][starts[int(f_score.argmax())]])


def ranking_figures(scores: Floats, positive: Bools, flagged: Bools, seed: int = 0) -> dict[str, Interval]:
    """Return auc and average_precision of ``scores``, and precision and recall of ``flagged`` rows, with intervals.

    The rows are drawn with replacement, ``RESAMPLES`` times; the same ``seed`` gives the same intervals.
    """
    rng, n_rows = np.random.default_rng(seed), len(scores)
    values = _figures(scores, positive, flagged, np.ones((1, n_rows)))
    drawn: list[dict[str, Floats]] = []
    at_once = max(1, _CELLS_AT_ONCE // n_rows)
    for start in range(0, RESAMPLES, at_once):
        draws = min(at_once, RESAMPLES - start)
        times = rng.multinomial(n_rows, np.full(n_rows, 1 / n_rows), size=draws).astype(np.float64)
        drawn.append(_figures(scores, positive, flagged, times))
    found = {}
    for name, value in values.items():
        samples = np.concatenate([one[name] for one in drawn])
        known = samples[~np.isnan(samples)]
        low, high = np.quantile(known, _TAILS) if len(known) else (np.nan, np.nan)
        found[name] = Interval(float(value[0]), float(low), float(high))
    return found


def _figures(scores: Floats, positive: Bools, flagged: Bools, times: Floats) -> dict[str, Floats]:
    right = times @ (positive & flagged).astype(np.float64)
    return {
        "auc": roc_auc(scores, positive, times),
        "average_precision": average_precision(scores, positive, times),
        "precision": _divided(right, times @ flagged.astype(np.float64)),
        "recall": _divided(right, times @ positive.astype(np.float64)),
    }


def _ties(scores: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return where each group of equal scores starts in ascending order, and that order of the rows."""
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    return np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]), order


def _grouped(
    times: Floats, positive: Bools, order: NDArray[np.intp], starts: NDArray[np.intp]
) -> tuple[Floats, Floats]:
    """Return the numbers (B, G) of positives and of negatives in each group of equal scores."""
    ordered = times[:, order]
    hits: Floats = np.add.reduceat(ordered * positive[order], starts, axis=1)
    return hits, np.add.reduceat(ordered, starts, axis=1) - hits


def _divided(above: Floats, below: Floats) -> Floats:
    """Return the quotients, NaN where ``below`` is zero."""
    found: Floats = np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)
    return found
