"""Top-5 localization of the heuristic's five boxes an image, by hand."""

from pathlib import Path

import numpy as np
import pytest

from schemas.scores import Scores
from tests.scoring import BUMP, Output, score

TRUTH = """file,class_id,xmin,ymin,xmax,ymax
tight.jpg,2,40,40,50,50
third.jpg,3,0,0,100,100
wrong.jpg,1,0,0,10,10
fourth.jpg,4,0,0,100,100
"""
LOOSE, TIGHT, FULL = (35, 35, 55, 55), (40, 40, 50, 50), (0, 0, 100, 100)


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Scores:
    """Return those of four images whose true classes have rank 1, 2, 0 and 3."""
    output = Output()
    output.settings |= {"box_rule": "heuristic", "threshold": [0.2, 0.5]}
    for uri in ("tight.jpg", "third.jpg", "wrong.jpg", "fourth.jpg"):
        output.image(uri, 1)
        for rank in (0, 1):
            output.answer(uri, rank, rank + 1, BUMP, LOOSE)
            output.rows["boxes"].append(
                output.rows["boxes"][-1]
                | {"threshold": 0.5, **dict(zip(("xmin", "ymin", "xmax", "ymax"), TIGHT, strict=True))}
            )
        output.answer(uri, 2, 3, BUMP, FULL)
        output.answer(uri, 3, 4, BUMP)
    return score(output, tmp_path_factory.mktemp("heuristic"), TRUTH)


def test_any_of_the_five_boxes_may_be_right(scores: Scores) -> None:
    # tight.jpg: its loose box has IoU 100/400, its tight one 1; third.jpg: its one box is right; the other two are
    # wrong, by the boxes and by the rank, which has no box whatever is cut.
    figure = scores.figure("top5_localization")
    assert (figure.value, figure.threshold) == (2 / 4, None)
    assert scores.figure("top5_localization_error").value == 2 / 4
    assert figure.full_image == 1 / 4, "the full image as the box of the first three classes is right for third.jpg"
    assert figure.central_70 == 0, "0.7 of each side is 0.49 of the area"


def test_figures_of_one_box_a_class_are_left_out(scores: Scores) -> None:
    metrics = {figure.metric for figure in scores.figures}
    assert metrics.isdisjoint({"gt_known", "top1_localization", "mean_iou"})
    assert {"top5_accuracy", "max_box_acc", "pointing_game"} <= metrics
    assert all(each.gt_known is None for each in scores.classes)
    assert any("the heuristic's five boxes" in note for note in scores.notes)


def test_its_own_figure_needs_no_map_of_five_classes(tmp_path: Path) -> None:
    output = Output()
    output.settings |= {"box_rule": "heuristic", "threshold": [0.2, 0.5], "topk": 3}
    output.image("tight.jpg", 1)
    output.answer("tight.jpg", 0, 1, np.zeros((2, 2), np.uint8))
    found = score(output, tmp_path, TRUTH.splitlines()[0] + "\ntight.jpg,2,0,0,9,9\n")
    assert found.figure("top5_localization").value == 0
