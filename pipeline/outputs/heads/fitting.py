"""Fits linear heads to labelled feature vectors: one against the rest for each class, with held-out figures.

The vectors are standardized for the fit, and the standardization is folded into the weights, so that a head stays one
linear layer on raw features. Both classes of each fit weigh the same. The strength of the regularization is chosen by
cross-validation; the held-out scores of the chosen strength give the threshold and the figures. Precision and recall
of a fold come from the threshold that the other folds choose.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC

from pipeline.arrays.metrics import Bools, Floats
from pipeline.arrays.ranking import Interval, best_threshold, ranking_figures
from pipeline.models.weights.head_file import Kind, probabilities

STRENGTHS: dict[Kind, tuple[float, ...]] = {"logistic": (1e-4, 1e-3, 1e-2, 1e-1, 1.0), "svm": (1e-5, 1e-4, 1e-3, 1e-2)}
"""The values of scikit-learn's C that are tried, for standardized vectors of about 1,000 values; ascending."""
FOLDS = 5
LEAST = 2
"""Least positives, and least negatives, of a class; with fewer nothing can be held out."""
HELD_OUT_ROWS = 10_000
"""Rows of the cross-validation; where there are more, a sample is taken, and all rows give the final weights."""
_ITERATIONS = 300
_SEED = 0


@dataclass(frozen=True)
class ClassFit:
    """The fit of one class."""

    weight: NDArray[np.float32]
    """(K,) for raw features."""
    bias: float
    threshold: float
    """Probability with the greatest F0.5 on held-out folds."""
    strength: float
    """The chosen C."""
    converged: bool
    """Whether the last fit came to rest in ``_ITERATIONS`` steps."""
    positives: int
    negatives: int
    figures: dict[str, Interval]


class Standardized:
    """Feature vectors (N, K) float32 with mean 0 and deviation 1 in each column; the given array is changed in place.

    A column with one value everywhere becomes zeros.
    """

    def __init__(self, features: NDArray[np.float32]) -> None:
        self.mean = features.mean(axis=0, dtype=np.float64)
        deviation = np.zeros(features.shape[1])
        for start in range(0, len(features), 4096):
            deviation += ((features[start : start + 4096] - self.mean) ** 2).sum(axis=0)
        deviation = np.sqrt(deviation / len(features))
        self.scale = np.where(deviation > 1e-6 * (np.abs(self.mean) + 1e-12), deviation, np.inf)
        features -= self.mean.astype(np.float32)
        features /= self.scale.astype(np.float32)
        self.values = features

    def unscaled(self, weight: Floats, bias: float) -> tuple[NDArray[np.float32], float]:
        """Return weights and bias for raw vectors of weights and bias for standardized ones."""
        raw = weight / self.scale
        return raw.astype(np.float32), float(bias - raw @ self.mean)


def fit_class(rows: Standardized, positive: Bools, kind: Kind) -> ClassFit:
    """Return the fit of one class; ``positive`` (N,) has at least LEAST rows of each kind."""
    chosen = _held_out_rows(positive)
    values, truth = rows.values[chosen], positive[chosen]
    folds = min(FOLDS, int(truth.sum()), int((~truth).sum()))
    fold = np.empty(len(truth), np.int64)
    for number, (_, held) in enumerate(StratifiedKFold(folds, shuffle=True, random_state=_SEED).split(values, truth)):
        fold[held] = number
    scores = _held_out_scores(values, truth, fold, kind)
    best = min(STRENGTHS[kind], key=lambda strength: (_loss(scores[strength], truth, kind), strength))
    model = _model(kind, best)
    converged = _fit(model, rows.values, positive)
    weight, bias, logits = model.coef_[0].astype(np.float64), float(model.intercept_[0]), scores[best]
    if kind == "svm":
        slope, offset = _calibrated(logits, truth)
        weight, bias, logits = slope * weight, slope * bias + offset, slope * logits + offset
    probs = probabilities(logits.astype(np.float32)).astype(np.float64)
    raw_weight, raw_bias = rows.unscaled(weight, bias)
    return ClassFit(
        raw_weight,
        raw_bias,
        best_threshold(probs, truth),
        best,
        converged,
        int(positive.sum()),
        int((~positive).sum()),
        ranking_figures(logits, truth, _flagged(probs, truth, fold)),
    )


def _held_out_rows(positive: Bools) -> NDArray[np.int64]:
    """Return the rows for the cross-validation, ascending: at most HELD_OUT_ROWS, up to half of them positives."""
    if len(positive) <= HELD_OUT_ROWS:
        return np.arange(len(positive))
    rng = np.random.default_rng(_SEED)
    hits, misses = (rng.permutation(np.flatnonzero(one)) for one in (positive, ~positive))
    most_hits = max(HELD_OUT_ROWS // 2, HELD_OUT_ROWS - len(misses))
    hits = hits[:most_hits]
    return np.sort(np.concatenate([hits, misses[: HELD_OUT_ROWS - len(hits)]]))


def _held_out_scores(
    values: NDArray[np.float32], truth: Bools, fold: NDArray[np.int64], kind: Kind
) -> dict[float, Floats]:
    """Return for each strength the scores (N,) of all rows, each by a fit that did not see the row's fold."""
    scores = {strength: np.empty(len(truth)) for strength in STRENGTHS[kind]}
    for number in range(int(fold.max()) + 1):
        held = fold == number
        seen, others = values[~held], values[held]
        model = _model(kind, STRENGTHS[kind][0])
        for strength in STRENGTHS[kind]:  # Ascending, so that each fit starts from the one before.
            model.set_params(C=strength)
            _fit(model, seen, truth[~held])
            scores[strength][held] = model.decision_function(others)
    return scores


def _model(kind: Kind, strength: float) -> Any:
    shared: dict[str, Any] = {"C": strength, "class_weight": "balanced", "max_iter": _ITERATIONS, "tol": 1e-3}
    if kind == "svm":
        return LinearSVC(**shared, dual="auto", random_state=_SEED)
    return LogisticRegression(**shared, warm_start=True)


def _fit(model: Any, values: NDArray[np.float32], truth: Bools) -> bool:
    """Fit the model and return whether it converged."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(values, truth)
    return not any(issubclass(one.category, ConvergenceWarning) for one in said)


def _loss(scores: Floats, truth: Bools, kind: Kind) -> float:
    """Return the mean loss that the fit minimizes, of positives and of negatives alike."""
    margins = np.where(truth, scores, -scores)
    losses = np.maximum(0, 1 - margins) ** 2 if kind == "svm" else np.logaddexp(0, -margins)
    return float(losses[truth].mean() + losses[~truth].mean()) / 2


def _calibrated(scores: Floats, truth: Bools) -> tuple[float, float]:
    """Return slope and offset that make held-out ``scores`` logits (Platt 1999); the slope is positive."""
    model = _model("logistic", 1.0)
    _fit(model, scores[:, None].astype(np.float32), truth)
    slope = float(model.coef_[0, 0])
    return (slope, float(model.intercept_[0])) if slope > 0 else (1.0, 0.0)


def _flagged(probs: Floats, truth: Bools, fold: NDArray[np.int64]) -> Bools:
    """Return (N,): whether each row reaches the threshold that the rows of the other folds choose."""
    flagged = np.zeros(len(truth), bool)
    for number in range(int(fold.max()) + 1):
        held = fold == number
        flagged[held] = probs[held] >= best_threshold(probs[~held], truth[~held])
    return flagged
