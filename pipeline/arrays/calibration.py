"""Calibrated box scores: a logistic regression from columns of a box's row to the probability that the box is right.

A box is right where its class is true for its image and its IoU with a true box of that class is at least 0.5.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.arrays.metrics import Bools, Floats

COLUMNS = ("class_prob", "area_frac", "rank", "component", "threshold")
"""Columns of the table boxes from which a score is computed."""
FEATURES = ("logit of class_prob", "log area_frac", "area_frac", "log of 1 + rank", "log of 1 + component", "threshold")
VERSION = 1
BINS = 10
_TINY = 1e-6


@dataclass(frozen=True)
class Calibration:
    """A fitted logistic regression."""

    means: tuple[float, ...]
    """The mean of each of FEATURES over the boxes of the fit."""
    scales: tuple[float, ...]
    """The standard deviations of FEATURES over these boxes; 1 for a constant feature."""
    weights: tuple[float, ...]
    """The weight of each standardized feature."""
    bias: float

    def scores(self, columns: Mapping[str, ArrayLike]) -> NDArray[np.float32]:
        """Return P(right) (N,) in [0, 1] of N boxes; ``columns`` holds COLUMNS, each (N,), as the table boxes does."""
        standardized = (features(columns) - self.means) / self.scales
        return _sigmoid(standardized @ np.asarray(self.weights) + self.bias).astype(np.float32)

    def document(self) -> dict[str, Any]:
        """Return the calibration as plain JSON values, which ``calibration_of`` reads."""
        return {"version": VERSION, "features": list(FEATURES), **asdict(self)}


def uncalibrated(columns: Mapping[str, ArrayLike], right_share: float) -> NDArray[np.float32]:
    """Return the scores (N,) of boxes without a fitted calibration: class_prob × ``right_share``.

    ``right_share`` is the share of right boxes among the network's boxes of true classes. The expected calibration
    error was .05 to .08 on photographs of the kind that the share was measured on, and .24 on another kind, where the
    scores were too high.
    """
    scores: NDArray[np.float32] = np.asarray(columns["class_prob"], np.float32) * np.float32(right_share)
    return scores


def calibration_of(document: Mapping[str, Any]) -> Calibration:
    """Return the calibration of a ``document()``; raises ValueError for another version or other features."""
    if document.get("version") != VERSION or document.get("features") != list(FEATURES):
        raise ValueError(f"version {document.get('version')} with {document.get('features')}, not {VERSION}")
    values = {name: tuple(map(float, document[name])) for name in ("means", "scales", "weights")}
    if any(len(each) != len(FEATURES) for each in values.values()):
        raise ValueError(f"not {len(FEATURES)} values for each of means, scales and weights")
    return Calibration(**values, bias=float(document["bias"]))


def features(columns: Mapping[str, ArrayLike]) -> Floats:
    """Return the values (N, 6) float64 of FEATURES for N boxes; ``columns`` holds COLUMNS, each (N,)."""
    prob, area, rank, component, threshold = (np.asarray(columns[name], np.float64) for name in COLUMNS)
    prob, area = np.clip(prob, _TINY, 1 - _TINY), np.clip(area, _TINY, 1)
    logit = np.log(prob) - np.log1p(-prob)
    return np.stack([logit, np.log(area), area, np.log1p(rank), np.log1p(component), threshold], axis=1)


def fit_calibration(columns: Mapping[str, ArrayLike], right: Bools) -> Calibration:
    """Fit and return the calibration of N boxes; ``right`` (N,) is True for a right box.

    Raises ValueError where all boxes are right or all are wrong.
    """
    # The import takes a second; actors only apply a calibration and need not wait for it.
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    if right.all() or not right.any():
        raise ValueError("needs right boxes and wrong ones")
    raw = features(columns)
    scaler = StandardScaler().fit(raw)
    fitted = LogisticRegression(tol=1e-6, max_iter=1000).fit(scaler.transform(raw), right)
    means, scales, weights = (tuple(map(float, each)) for each in (scaler.mean_, scaler.scale_, fitted.coef_[0]))
    return Calibration(means, scales, weights, float(fitted.intercept_[0]))


class Bin(NamedTuple):
    """The boxes whose scores lie in one tenth of [0, 1]."""

    boxes: int
    mean_score: float
    right: float
    """The share of right boxes, in [0, 1]."""


def reliability(scores: ArrayLike, right: Bools) -> tuple[Bin, ...]:
    """Return the bins with boxes, of equal width, by ascending score; ``scores`` (N,) in [0, 1], ``right`` (N,)."""
    values = np.asarray(scores, np.float64)
    place = np.minimum((values * BINS).astype(np.int64), BINS - 1)
    return tuple(
        Bin(int(own.sum()), float(values[own].mean()), float(right[own].mean()))
        for own in (place == each for each in np.unique(place))
    )


def expected_calibration_error(bins: tuple[Bin, ...]) -> float:
    """Return ECE of at least one bin: the mean over all boxes of |mean score - share of right boxes| of their bin."""
    total = sum(each.boxes for each in bins)
    return sum(each.boxes * abs(each.mean_score - each.right) for each in bins) / total


def _sigmoid(values: Floats) -> Floats:
    result: Floats = 0.5 * (1 + np.tanh(values / 2))
    return result
