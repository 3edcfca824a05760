"""Pointing at inclusive boxes, and the figures of each class, from arrays by hand."""

import numpy as np
import pytest

from pipeline.arrays import metrics
from pipeline.arrays.class_figures import class_scores
from pipeline.arrays.figures import THRESHOLDS, Pairs, Scorer, Sweep, sweep_maps
from pipeline.arrays.metrics import Convention
from schemas.scores import Figure


def pairs_of(
    *boxes: tuple[float, float, float, float],
    size_wh: tuple[int, int] = (100, 100),
    convention: Convention = "half-open",
) -> Pairs:
    """Return a pair with one true box for each of as many images of one size."""
    each, sizes = np.arange(len(boxes)), np.tile(np.array(size_wh, dtype=np.float64), (len(boxes), 1))
    return Pairs(len(boxes), each, sizes, np.array(boxes, dtype=np.float64), each, convention)


@pytest.mark.parametrize(
    ("box", "convention", "hit"),
    [
        ((0, 0, 50, 100), "half-open", True),
        ((0, 0, 49, 99), "inclusive", True),
        ((0, 0, 49, 99), "half-open", False),
        ((0, 0, 48, 99), "inclusive", False),
    ],
)
def test_the_last_pixels_of_an_inclusive_box_may_be_pointed_at(
    box: tuple[float, float, float, float], convention: Convention, hit: bool
) -> None:
    # 99 pixels wide: the peak in column 49 and the middle of the image are both at x = 49.5.
    pairs = pairs_of(box, size_wh=(99, 100), convention=convention)
    heat = np.zeros((1, 100, 99), np.uint8)
    heat[0, 99, 49] = 255
    sweep = sweep_maps(pairs, [(heat, np.array([0]))])
    pointing = list(Scorer(pairs, np.array([0])).of_sweep(sweep))[-1]
    assert pointing.metric == "pointing_game"
    assert (pointing.value, pointing.full_image, pointing.central_70) == (hit, hit, hit)


def test_figures_of_a_class_by_hand() -> None:
    # "owl": the full image covers the first two boxes with IoU 1 and 0.5, the third with 0.25; the central box of
    # 70 × 70 has IoU 0.49, 2450 / 7450 and 1225 / 6175 with them. "cat": one image, the central box itself.
    pairs = pairs_of((0, 0, 100, 100), (15, 15, 85, 85), (0, 0, 50, 100), (0, 0, 50, 50))
    names, rank = ("owl", "cat", "owl", "owl"), np.array([0, 3, 0, 0])
    iou = np.array([0.9, 0.2, 0.6, 0.3])
    reached = np.zeros((4, len(THRESHOLDS)))
    reached[:, 5] = [0.8, 0.7, 0.5, 0.5]
    reached[:, 9] = [0.0, 0.9, 0.9, 0.9]
    anywhere = reached.copy()
    anywhere[:, 5] = [0.8, 0.7, 0.5, 0.4]
    anywhere[:, 9] = [0.2, 0.9, 0.9, 0.9]
    pointed = np.array([True, True, True, False])
    cat, owl = class_scores(names, pairs, rank, iou, 0.2, Sweep(reached, anywhere, pointed))
    assert (cat.class_name, cat.pairs, owl.class_name, owl.pairs) == ("cat", 1, "owl", 3)
    assert cat.gt_known == Figure("gt_known", 0.2, 0, 0, 0, full_image=0, central_70=1)
    assert cat.mean_iou is not None
    assert cat.mean_iou.full_image == pytest.approx(0.49)
    assert owl.top1_accuracy == Figure("top1_accuracy", None, 1, 1, 1)
    assert owl.max_box_acc == Figure("max_box_acc", 0.1, 1, 1, 1, full_image=2 / 3, central_70=0)
    # Cut 5 is best for all at 0.3 and the first of two at 0.5, cut 9 at 0.7: each demand loses another owl, or none.
    assert owl.max_box_acc_v2 is not None
    assert (owl.max_box_acc_v2.threshold, owl.max_box_acc_v2.value) == (None, pytest.approx((1 + 2 / 3 + 2 / 3) / 3))
    assert owl.max_box_acc_v2.full_image == pytest.approx((2 / 3 + 2 / 3 + 1 / 3) / 3)
    assert owl.max_box_acc_v2.central_70 == pytest.approx((2 / 3 + 0 + 0) / 3)
    assert (owl.max_box_acc_v2.low, owl.max_box_acc_v2.high) == (pytest.approx(2 / 3), 1)
    assert cat.max_box_acc_v2 is not None
    assert (cat.max_box_acc_v2.value, cat.max_box_acc_v2.central_70) == (1, 1)
    assert cat.top1_localization == Figure("top1_localization", 0.2, 0, 0, 0, full_image=0, central_70=0)
    assert owl.top1_localization is not None
    assert (owl.top1_localization.value, owl.top1_localization.full_image) == (2 / 3, 2 / 3)
    # Of the owls' boxes the first alone holds the middle of the image: x = 50 is outside of those that end there.
    assert owl.pointing_game is not None
    assert (owl.pointing_game.value, owl.pointing_game.full_image) == (2 / 3, 1 / 3)
    assert cat.pointing_game == Figure("pointing_game", None, 1, 1, 1, full_image=1, central_70=1)
    assert (cat.pxap, owl.pxap) == (None, None)
    assert owl.gt_known is not None
    assert (owl.gt_known.value, owl.gt_known.full_image, owl.gt_known.central_70) == (2 / 3, 2 / 3, 0)
    assert (owl.gt_known.low, owl.gt_known.high) == (0, 1), "1 in 27 draws takes the wrong image three times"
    assert owl.mean_iou is not None
    assert (owl.mean_iou.value, owl.mean_iou.full_image) == (pytest.approx(0.6), pytest.approx(1.75 / 3))
    assert owl.mean_iou.central_70 == pytest.approx((0.49 + 2450 / 7450 + 1225 / 6175) / 3)
    assert (owl.mean_iou.low, owl.mean_iou.high) == (pytest.approx(0.3), pytest.approx(0.9))


def test_a_class_has_the_interval_of_its_own_pairs_images_drawn_whole() -> None:
    hits = np.arange(300) % 3 == 0
    image = np.arange(300) // 2
    pairs = Pairs(150, image, np.full((300, 2), 10.0), np.tile([0.0, 0, 10, 10], (300, 1)), np.arange(300), "half-open")
    names = ["even" if index % 4 < 2 else "odd" for index in range(300)]
    even, odd = class_scores(names, pairs, np.where(hits, 0, 1))
    assert (even.gt_known, even.mean_iou, even.max_box_acc) == (None, None, None)
    for score, own in ((even, np.arange(300) % 4 < 2), (odd, np.arange(300) % 4 >= 2)):
        expected = metrics.bootstrap_interval(hits[own], image[own])
        assert (score.top1_accuracy.low, score.top1_accuracy.high) == expected
        assert 0 < score.top1_accuracy.low < score.top1_accuracy.value < score.top1_accuracy.high < 1
