"""The localization metrics against values worked by hand and against pycocotools."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask
from sklearn.metrics import average_precision_score

from pipeline.arrays import metrics

COORDINATE = st.floats(0, 100, allow_nan=False, width=32)
SIDE = st.floats(0.5, 60, allow_nan=False, width=32)
BOX = st.tuples(COORDINATE, COORDINATE, SIDE, SIDE)
BOXES_XYWH = st.lists(BOX, min_size=1, max_size=5).map(np.array)
ONE_PIXEL = np.array([0, 0, 1, 1])


def as_xyxy(boxes_xywh: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)


@given(BOXES_XYWH, BOXES_XYWH)
def test_iou_agrees_with_pycocotools(one: np.ndarray, other: np.ndarray) -> None:
    expected = coco_mask.iou(one, other, [0] * len(other))
    np.testing.assert_allclose(metrics.iou(as_xyxy(one), as_xyxy(other)), expected, atol=1e-9)


@given(BOXES_XYWH, BOXES_XYWH)
def test_inclusive_iou_is_pycocotools_iou_of_boxes_one_pixel_larger(one: np.ndarray, other: np.ndarray) -> None:
    expected = coco_mask.iou(one + ONE_PIXEL, other + ONE_PIXEL, [0] * len(other))
    np.testing.assert_allclose(metrics.iou(as_xyxy(one), as_xyxy(other), "inclusive"), expected, atol=1e-9)


def test_iou_by_hand_in_both_conventions() -> None:
    one, other = np.array([[0.0, 0, 2, 2]]), np.array([[1.0, 0, 3, 2]])
    assert metrics.iou(one, other)[0, 0] == pytest.approx(2 / 6)
    assert metrics.iou(one, other, "inclusive")[0, 0] == pytest.approx(6 / 12)
    same_pixels = metrics.iou(metrics.inclusive_pixels(one), metrics.inclusive_pixels(other), "inclusive")
    assert same_pixels[0, 0] == pytest.approx(2 / 6)


def test_iou_of_boxes_without_area_and_of_no_boxes() -> None:
    point = np.array([[1.0, 1, 1, 1]])
    assert metrics.iou(point, point) == [[0.0]]
    assert metrics.iou(np.zeros((0, 4)), point).shape == (0, 1)


def test_best_iou_looks_only_at_the_owners_boxes() -> None:
    truth = np.array([[0.0, 0, 4, 4], [0, 0, 2, 4], [0, 0, 8, 4]])
    boxes = np.array([[0.0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 4, 4]])
    best = metrics.best_iou(boxes, np.array([2, 1, 0]), truth, np.array([1, 1, 2]))
    np.testing.assert_allclose(best, [0.5, 1.0, 0.0])


@given(st.lists(st.tuples(BOX, st.integers(0, 3)), max_size=6), st.lists(st.tuples(BOX, st.integers(0, 3)), max_size=6))
def test_best_iou_is_the_maximum_over_the_matrix(found: list, true: list) -> None:
    true = sorted(true, key=lambda item: item[1])
    boxes, truth = (as_xyxy(np.array([box for box, _ in rows]).reshape(-1, 4)) for rows in (found, true))
    owner, truth_owner = (np.array([place for _, place in rows], dtype=np.int64) for rows in (found, true))
    same = owner[:, None] == truth_owner[None, :]
    expected = np.where(same, metrics.iou(boxes, truth), 0).max(axis=1, initial=0)
    np.testing.assert_allclose(metrics.best_iou(boxes, owner, truth, truth_owner), expected)


def test_localization_needs_label_and_box_in_one_guess_among_the_first() -> None:
    owner, rank = np.array([0, 0, 1, 2]), np.array([0, 3, 4, 5])
    box_iou = np.array([0.49, 0.5, 0.9, 0.9])
    assert metrics.localization_hits(owner, rank, box_iou, 4, top=1).tolist() == [False] * 4
    assert metrics.localization_hits(owner, rank, box_iou, 4, top=5).tolist() == [True, True, False, False]


THRESHOLDS = np.array([0.0, 0.2, 0.4])
IOUS = np.array([[0.2, 0.5, 0.8], [0.4, 0.6, 0.3], [0.75, 0.5, 0.1], [0.1, 0.2, 0.35]])


def test_accuracy_curves_by_hand() -> None:
    expected = [[0.5, 0.75, 0.75], [0.25, 0.75, 0.25], [0.25, 0, 0.25]]
    assert metrics.accuracy_curves(IOUS).tolist() == expected


def test_max_box_acc_by_hand_at_its_threshold() -> None:
    curve = metrics.accuracy_curves(IOUS, [0.5])[0]
    assert metrics.max_box_acc(curve) == 0.75
    assert metrics.best_threshold(curve, THRESHOLDS) == 0.2


def test_max_box_acc_v2_by_hand_takes_each_delta_at_its_own_threshold() -> None:
    assert metrics.max_box_acc_v2(metrics.accuracy_curves(IOUS)) == pytest.approx((0.75 + 0.75 + 0.25) / 3)


def test_of_equally_good_thresholds_the_lowest_is_the_best() -> None:
    assert metrics.best_threshold(np.array([0.1, 0.7, 0.7]), THRESHOLDS) == 0.2


def test_metrics_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="no map"):
        metrics.accuracy_curves(np.zeros((0, 3)))
    with pytest.raises(ValueError, match="no value"):
        metrics.bootstrap_interval(np.zeros(0), np.zeros(0, dtype=np.int64))


def test_scatter_max_by_hand() -> None:
    assert metrics.scatter_max(np.array([0.3, 0.7, 0.1]), np.array([2, 2, 0]), 3).tolist() == [0.1, 0.0, 0.7]


def test_pointing_is_half_open_and_needs_the_owners_box() -> None:
    points = np.array([[2.0, 2], [4, 2], [3.9, 0], [2, 2]])
    hits = metrics.pointing_hits(points, np.array([0, 0, 0, 1]), np.array([[0.0, 0, 4, 4]]), np.array([0]))
    assert hits.tolist() == [True, False, True, False]


def test_central_boxes_cover_their_share_of_each_side() -> None:
    sizes = np.array([[100.0, 50]])
    np.testing.assert_allclose(metrics.central_boxes(sizes), [[15, 7.5, 85, 42.5]])
    np.testing.assert_allclose(metrics.central_boxes(sizes, 1), [[0, 0, 100, 50]])


def test_interval_of_a_share_is_near_the_normal_one_and_fixed_by_its_seed() -> None:
    hits = np.arange(400) % 4 == 0
    low, high = metrics.bootstrap_interval(hits, np.arange(400))
    half = 1.96 * np.sqrt(0.25 * 0.75 / 400)
    assert low == pytest.approx(0.25 - half, abs=0.01)
    assert high == pytest.approx(0.25 + half, abs=0.01)
    assert metrics.bootstrap_interval(hits, np.arange(400)) == (low, high)
    assert metrics.bootstrap_interval(hits, np.arange(400), seed=1) != (low, high)


def test_interval_draws_all_rows_of_an_image_together() -> None:
    hits = np.tile([True, False], 50)
    alone = metrics.bootstrap_interval(hits, np.arange(100))
    paired = metrics.bootstrap_interval(hits, np.arange(100) // 2)
    assert paired == (0.5, 0.5)
    assert alone[1] - alone[0] > 0.1


def test_interval_of_a_maximum_over_thresholds_takes_it_in_each_resample() -> None:
    values = np.stack([np.arange(200) % 2 == 0, np.arange(200) % 2 == 1], axis=1)
    low, high = metrics.bootstrap_interval(values, np.arange(200), lambda means: means.max(axis=1))
    assert low >= 0.5
    assert 0.53 < high < 0.62


COUNTS = hnp.arrays(np.int64, st.tuples(st.just(2), st.integers(1, 6)), elements=st.integers(0, 5))


@given(COUNTS.filter(lambda counts: counts[0].sum() > 0))
def test_pxap_is_scikit_learns_average_precision_of_all_pixels(counts: np.ndarray) -> None:
    scores = np.concatenate([np.repeat(np.arange(counts.shape[1]), row) for row in counts])
    inside = np.repeat([1, 0], counts.sum(axis=1))
    assert metrics.pixel_average_precision(counts) == pytest.approx(average_precision_score(inside, scores))


def test_pxap_by_hand() -> None:
    # At score 2 one pixel inside and one out, at 1 three inside, at 0 nobody else is inside.
    counts = np.array([[0.0, 3, 1], [6, 0, 1]])
    assert metrics.pixel_average_precision(counts) == pytest.approx(1 / 4 * 1 / 2 + 3 / 4 * 4 / 5)
    assert metrics.precision_recall(counts).tolist() == [[1 / 4, 1 / 2], [1, 4 / 5], [1, 4 / 11]]
    both = metrics.pixel_average_precision(np.stack([counts, 2 * counts, np.zeros((2, 3))]))
    np.testing.assert_allclose(both, [0.725, 0.725, 0])


def test_precision_starts_where_the_first_pixel_is() -> None:
    assert metrics.precision_recall(np.array([[1.0, 0], [1, 0]])).tolist() == [[1, 0.5]]
