"""Calibrated box scores: that the fit is the likeliest, and by hand."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arrays.calibration import (
    calibration_of,
    expected_calibration_error,
    features,
    fit_calibration,
    reliability,
)


def boxes(n: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "class_prob": rng.uniform(0, 1, n) ** 3,
        "area_frac": rng.uniform(0.001, 1, n),
        "rank": rng.integers(0, 5, n),
        "component": rng.integers(0, 3, n),
        "threshold": rng.choice([0.2, 0.4], n).astype(np.float32),
    }


def right_ones(columns: dict[str, np.ndarray], seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, 1])
    likely = columns["class_prob"] * (1 - np.abs(columns["area_frac"] - 0.4))
    return rng.uniform(size=len(likely)) < likely


@settings(max_examples=15)
@given(st.integers(60, 300), st.integers(0, 1000))
def test_no_other_weights_are_likelier(n: int, seed: int) -> None:
    """Where Σ log-loss + |w|²/2 of standardized features is least, its gradient is zero."""
    columns = boxes(n, seed)
    right = right_ones(columns, seed)
    right[:2] = [True, False]
    fitted = fit_calibration(columns, right)
    raw = features(columns)
    np.testing.assert_allclose(fitted.means, raw.mean(axis=0))
    np.testing.assert_allclose(fitted.scales, raw.std(axis=0))
    standardized = (raw - fitted.means) / fitted.scales
    likely = 1 / (1 + np.exp(-(standardized @ np.array(fitted.weights) + fitted.bias)))
    np.testing.assert_allclose(fitted.scores(columns), likely, atol=1e-6)
    assert abs((likely - right).sum()) < 1e-3
    np.testing.assert_allclose(standardized.T @ (likely - right) + fitted.weights, 0, atol=1e-3)


def test_a_feature_that_never_changes_weighs_nothing() -> None:
    columns = boxes(200, 6) | {"threshold": np.full(200, 0.2, np.float32)}
    fitted = fit_calibration(columns, right_ones(columns, 6))
    assert fitted.scales[-1] == 1
    assert fitted.weights[-1] == pytest.approx(0, abs=1e-6)


def test_scores_of_new_boxes_are_calibrated() -> None:
    columns, new = boxes(4000, 1), boxes(4000, 2)
    calibration = fit_calibration(columns, right_ones(columns, 1))
    right = right_ones(new, 2)
    assert expected_calibration_error(reliability(calibration.scores(new), right)) < 0.03
    assert calibration.scores(new).dtype == np.float32


def test_a_calibration_survives_json_and_others_are_refused() -> None:
    columns = boxes(200, 3)
    calibration = fit_calibration(columns, right_ones(columns, 3))
    document = json.loads(json.dumps(calibration.document()))
    assert calibration_of(document) == calibration
    with pytest.raises(ValueError, match="version 2"):
        calibration_of({**document, "version": 2})
    with pytest.raises(ValueError, match="not 6 values"):
        calibration_of({**document, "weights": [1.0]})


def test_extreme_probabilities_and_no_boxes() -> None:
    columns = boxes(200, 4)
    calibration = fit_calibration(columns, right_ones(columns, 4))
    edge = {
        "class_prob": [0.0, 1.0],
        "area_frac": [0.0, 1.0],
        "rank": [0, 4],
        "component": [0, 9],
        "threshold": [0.2] * 2,
    }
    assert ((calibration.scores(edge) >= 0) & (calibration.scores(edge) <= 1)).all()
    assert calibration.scores({name: [] for name in edge}).shape == (0,)


@pytest.mark.parametrize("right", [True, False])
def test_boxes_of_one_kind_alone_fit_nothing(right: bool) -> None:
    with pytest.raises(ValueError, match="needs right boxes and wrong ones"):
        fit_calibration(boxes(10, 5), np.full(10, right))


def test_reliability_by_hand() -> None:
    bins = reliability([0.05, 0.09, 0.95, 1.0], np.array([False, True, True, True]))
    assert [tuple(each) for each in bins] == [(2, pytest.approx(0.07), 0.5), (2, pytest.approx(0.975), 1.0)]
    assert expected_calibration_error(bins) == pytest.approx((0.43 + 0.025) / 2)
