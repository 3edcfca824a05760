"""Scores worked by hand, of an output written through the real commit path."""

from pathlib import Path

import numpy as np
import pytest

from schemas.scores import ClassScore, Figure, Scores
from tests.fake_lake import MODEL
from tests.scoring import BUMP, LEFT, TRUTH, Output, example, score


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Scores:
    return score(example(), tmp_path_factory.mktemp("example"))


@pytest.mark.parametrize(
    ("metric", "threshold", "value", "full_image", "central_70"),
    [
        ("top1_accuracy", None, 1 / 4, None, None),
        ("top5_accuracy", None, 3 / 4, None, None),
        ("gt_known", 0.2, 2 / 4, 1 / 4, 1 / 4),
        ("top1_localization", 0.2, 1 / 4, 0, 0),
        ("top5_localization", 0.2, 2 / 4, 1 / 4, 0),
        (
            "mean_iou",
            0.2,
            (1 + 0.8) / 4,
            (0.04 + 0.5 + 0.25 + 0.49) / 4,
            (400 / 4900 + 2450 / 7450 + 1225 / 6175 + 1) / 4,
        ),
        ("max_box_acc", 0.02, 2 / 4, 1 / 4, 1 / 4),
        ("max_box_acc_v2", None, 3 / 4, (2 / 4 + 1 / 4 + 0) / 3, (2 / 4 + 1 / 4 + 1 / 4) / 3),
        ("max_box_acc_v2_at_0.3", 0.02, 3 / 4, 2 / 4, 2 / 4),
        ("max_box_acc_v2_at_0.5", 0.02, 3 / 4, 1 / 4, 1 / 4),
        ("max_box_acc_v2_at_0.7", 0.02, 3 / 4, 0, 1 / 4),
        ("pointing_game", None, 3 / 4, 2 / 4, 2 / 4),
    ],
)
def test_every_figure_by_hand(
    scores: Scores,
    metric: str,
    threshold: float | None,
    value: float,
    full_image: float | None,
    central_70: float | None,
) -> None:
    figure = scores.figure(metric)
    assert figure.threshold == threshold
    assert figure.value == pytest.approx(value)
    assert figure.full_image == (None if full_image is None else pytest.approx(full_image))
    assert figure.central_70 == (None if central_70 is None else pytest.approx(central_70))
    assert 0 <= figure.low <= figure.value <= figure.high <= 1


def test_counts_notes_and_curve(scores: Scores) -> None:
    assert (scores.model, scores.images, scores.pairs) == (MODEL, 4, 4)
    assert (scores.missing_images, scores.pairs_without_rows) == (1, 1)
    assert "1 images of the truth are not among" in scores.notes[0]
    assert "1 of 4 pairs" in scores.notes[1]
    assert [curve.metric for curve in scores.curves_of("accuracy")] == [
        "max_box_acc",
        *(f"max_box_acc_v2_at_{delta}" for delta in (0.3, 0.5, 0.7)),
    ]
    assert scores.curves_of("precision") == []
    curve = dict(scores.curves[0].points)
    assert len(curve) == 50
    assert [curve[t] for t in (0.0, 0.02, 0.28, 0.3, 0.98)] == [0.25, 0.5, 0.5, 0.25, 0.25]


def test_scores_of_each_class(scores: Scores) -> None:
    by_name = {each.class_name: each for each in scores.classes}
    assert set(by_name) == {"ring", "star", "cat or dog", "owl"}
    star = by_name["star"]
    assert star.pairs == 1
    assert star.top1_accuracy == Figure("top1_accuracy", None, 0, 0, 0)
    assert star.gt_known == Figure("gt_known", 0.2, 1, 1, 1, full_image=1, central_70=0)
    assert star.max_box_acc == Figure("max_box_acc", 0.02, 1, 1, 1, full_image=1, central_70=0)
    assert star.mean_iou is not None
    assert (star.mean_iou.value, star.mean_iou.full_image) == (pytest.approx(0.8), pytest.approx(0.5))
    assert star.mean_iou.central_70 == pytest.approx(2450 / 7450)


@pytest.mark.parametrize("accuracy", ["top1_accuracy", "top5_accuracy", "top1_localization", "top5_localization"])
def test_errors_are_what_is_left_to_one(scores: Scores, accuracy: str) -> None:
    one, other = scores.figure(accuracy), scores.figure(accuracy.removesuffix("_accuracy") + "_error")
    assert other.value == pytest.approx(1 - one.value)
    assert (other.low, other.high, other.threshold) == (1 - one.high, 1 - one.low, one.threshold)
    assert other.full_image == (None if one.full_image is None else 1 - one.full_image)


def test_a_class_name_is_no_markdown(scores: Scores) -> None:
    odd = ClassScore("a|b<script>\n*c*", 1, Figure("top1_accuracy", None, 1, 1, 1))
    page = Scores(**{**vars(scores), "classes": (odd,)}).markdown()
    assert r"| a\|b&lt;script&gt; \*c\* | 1 |" in page


def test_inclusive_pixels_make_the_truth_one_pixel_larger(tmp_path: Path) -> None:
    scores = score(example(), tmp_path, convention="inclusive")
    expected = (400 / 441 + 4000 / (51 * 101) + 1 / (50 * 50 + 51 * 51 - 1) + 0) / 4
    assert scores.figure("mean_iou").value == pytest.approx(expected)
    assert scores.iou_convention == "inclusive"


def test_two_classes_of_one_image_are_two_pairs_and_one_image(tmp_path: Path) -> None:
    output = Output()
    output.image("a.jpg", 1)
    output.answer("a.jpg", 0, 1, BUMP, (35, 35, 55, 55))
    output.answer("a.jpg", 1, 2, LEFT, (50, 0, 100, 100))
    truth = "file,class_id,xmin,ymin,xmax,ymax\na.jpg,1,35,35,55,55\na.jpg,2,0,0,50,100\n"
    scores = score(output, tmp_path, truth)
    assert (scores.images, scores.pairs) == (1, 2)
    assert scores.figure("top1_accuracy").value == scores.figure("top1_localization").value == 1
    assert scores.figure("gt_known").value == 0.5


def test_several_thresholds_have_their_own_figures(tmp_path: Path) -> None:
    output = Output()
    output.settings["threshold"] = [0.2, 0.35]
    output.image("a.jpg", 1)
    output.answer("a.jpg", 0, 1, BUMP, (35, 35, 55, 55))
    output.rows["boxes"] += [row | {"threshold": 0.35, "xmax": 36.0} for row in output.rows["boxes"]]
    scores = score(output, tmp_path, "file,class_id,xmin,ymin,xmax,ymax\na.jpg,1,35,35,55,55\n")
    assert (scores.figure("gt_known", 0.2).value, scores.figure("gt_known", 0.35).value) == (1, 0)


def test_maps_of_other_sizes_cover_their_whole_image(tmp_path: Path) -> None:
    output = example()
    output.image("s3://b/x/wide.jpg", 5, width=200, height=50)
    heat = np.zeros((5, 20), np.uint8)
    heat[2, 10] = 255
    output.answer("s3://b/x/wide.jpg", 0, 5, heat)
    scores = score(output, tmp_path, TRUTH + "wide.jpg,owl,5,95,15,115,35\n")
    assert scores.figure("pointing_game").value == 4 / 5
    assert scores.figure("max_box_acc").value == 3 / 5
    assert scores.figure("gt_known").value == 2 / 5


def test_truth_by_label(tmp_path: Path) -> None:
    truth = "image,class_name,xmin,ymin,xmax,ymax\na.jpg,ring,35,35,55,55\nb.jpg,star,0,0,50,100\n"
    scores = score(example(), tmp_path, truth)
    assert (scores.figure("gt_known").value, scores.figure("top1_accuracy").value) == (1, 0.5)
