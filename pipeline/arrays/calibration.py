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
    """One for each standardized feature."""
    bias: float

    def scores(self, columns: Mapping[str, ArrayLike]) -> NDArray[np.float32]:
        """Return P(right) (N,) in [0, 1] of N boxes; ``columns`` has those of COLUMNS, as the table boxes does."""
        standardized = (features(columns) - self.means) / self.scales
        return _sigmoid(standardized @ np.asarray(self.weights) + self.bias).astype(np.float32)

    def document(self) -> dict[str, Any]:
        """Return the calibration as plain JSON values, which ``calibration_of`` reads."""
        return {"version": VERSION, "features": list(FEATURES), **asdict(self)}


def uncalibrated(columns: Mapping[str, ArrayLike], right_share: float) -> NDArray[np.float32]:
    """Return the scores (N,) of boxes where no truth was there to fit a calibration: class_prob × ``right_share``.

    ``right_share`` is the network's share of right boxes among those of true classes. On photographs like those that it
    was measured on, the expected calibration error was .05 to .08; under a shift of domain it is overconfident (.24).
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
    """Return (N, 6) FEATURES of N boxes."""
    prob, area, rank, component, threshold = (np.asarray(columns[name], np.float64) for name in COLUMNS)
    prob, area = np.clip(prob, _TINY, 1 - _TINY), np.clip(area, _TINY, 1)
    logit = np.log(prob) - np.log1p(-prob)
    return np.stack([logit, np.log(area), area, np.log1p(rank), np.log1p(component), threshold], axis=1)


def fit_calibration(columns: Mapping[str, ArrayLike], right: Bools) -> Calibration:
    """Fit and return the calibration of N boxes, by which of them are ``right`` (N,).

    Raises ValueError where all boxes are right, or none is.
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
    """Return the bins that hold boxes, by score, all of one width; ``scores`` (N,) in [0, 1], ``right`` (N,)."""
    values = np.asarray(scores, np.float64)
    place = np.minimum((values * BINS).astype(np.int64), BINS - 1)
    return tuple(
        Bin(int(own.sum()), float(values[own].mean()), float(right[own].mean()))
        for own in (place == each for each in np.unique(place))
    )


def expected_calibration_error(bins: tuple[Bin, ...]) -> float:
    """Return ECE: the mean over all boxes of |mean score of the bin - share of right boxes in the bin|."""
    total = sum(each.boxes for each in bins)
    return sum(each.boxes * abs(each.mean_score - each.right) for each in bins) / total


def _sigmoid(values: Floats) -> Floats:
    result: Floats = 0.5 * (1 + np.tanh(values / 2))
    return result
