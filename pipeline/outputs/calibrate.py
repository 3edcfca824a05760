"""Fits the calibration of box_score on an output and a truth, and measures how reliable it is; no network runs."""

import numpy as np
import pandas as pd

from pipeline.arrays.calibration import (
    COLUMNS,
    Calibration,
    expected_calibration_error,
    fit_calibration,
    reliability,
)
from pipeline.arrays.metrics import IOU_DELTA, Bools, Convention, scatter_max
from pipeline.outputs.reader import Lake
from pipeline.outputs.truth_join import Match, matched
from pipeline.storage.truth.truth import Truth
from schemas.errors import UsageError
from schemas.scores import CalibrationScore

LEAST = 10
"""Least number of right boxes and of wrong boxes in each half. With fewer, a bin's share of right boxes is chance."""


def calibrate(
    lake: Lake, truth: Truth, *, model: str | None = None, convention: Convention = "half-open"
) -> tuple[str, Calibration, CalibrationScore]:
    """Return a model's name, its box score fitted on half of the truth's images, and how it fares on the others.

    The boxes are those of the top-k classes: others are there because a truth named them. A box is right where its
    class is true for the image, with IoU >= 0.5 with a true box of it: what the truth does not name counts as wrong.
    Which half an image is in follows from its id. Raises UsageError as ``evaluate`` does, where the truth has no boxes,
    and where a half has fewer than LEAST right boxes or wrong ones.
    """
    if not len(truth.boxes_xyxy):
        raise UsageError("--calibrate: the truth has masks and no boxes; allowed: a truth with boxes")
    with matched(lake, truth, model, convention) as match:
        name = match.run.model
        boxes, right = _judged_boxes(lake, match)
    fitted = np.array([int(image_id[-1], 16) % 2 == 0 for image_id in boxes["image_id"]], dtype=np.bool_)
    _check_enough(right[fitted], right[~fitted])
    first, second = ({column: boxes[column].to_numpy()[half] for column in COLUMNS} for half in (fitted, ~fitted))
    calibration = fit_calibration(first, right[fitted])
    tested = right[~fitted]
    bins = reliability(calibration.scores(second), tested)
    score = CalibrationScore(
        boxes_fitted=int(fitted.sum()),
        boxes_tested=len(tested),
        right=float(tested.mean()),
        ece=expected_calibration_error(bins),
        ece_of_class_prob=expected_calibration_error(reliability(second["class_prob"], tested)),
        reliability=tuple((each.boxes, each.mean_score, each.right) for each in bins),
    )
    return name, calibration, score


def _check_enough(fitted: Bools, tested: Bools) -> None:
    """Raise UsageError where the boxes of either half are right, or wrong, too rarely to fit or to test on."""
    counts = [int(count) for right in (fitted, tested) for count in (right.sum(), (~right).sum())]
    if min(counts) < LEAST:
        raise UsageError(
            f"--calibrate: of the boxes on the truth's images, the half to fit on has {counts[0]} right and {counts[1]}"
            f" wrong ones, the half to test on {counts[2]} and {counts[3]}; allowed: at least {LEAST} of each"
        )


def _judged_boxes(lake: Lake, match: Match) -> tuple[pd.DataFrame, Bools]:
    """Return the boxes (R rows) of the top-k classes on the truth's images, and which of them are right, (R,)."""
    rows = lake.sql(
        """SELECT box.*, pair FROM
        (SELECT *, row_number() OVER (ORDER BY image_id, rank, threshold, component) - 1 AS place FROM boxes
         WHERE model = $model AND rank < $topk AND image_id IN (SELECT image_id FROM camlake_truth)) AS box
        LEFT JOIN camlake_truth AS truth ON box.image_id = truth.image_id
        AND (box.class_id = truth.class_id OR box.label = truth.label) ORDER BY place""",
        {"model": match.run.model, "topk": match.run.settings["topk"]},
    ).df()
    boxes, true = rows.drop_duplicates("place"), rows.dropna(subset="pair")
    iou = match.pairs.iou(true[["xmin", "ymin", "xmax", "ymax"]].to_numpy(np.float64), true["pair"].to_numpy(np.int64))
    return boxes, scatter_max(iou, true["place"].to_numpy(np.int64), len(boxes)) >= IOU_DELTA
