"""The figures of each class, over its own pairs, from the arrays of an evaluation."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.arrays.figures import THRESHOLDS, Pairs, Sweep
from pipeline.arrays.metrics import (
    CENTRAL_SHARE,
    IOU_DELTA,
    Bools,
    Floats,
    Ints,
    accuracy_curves,
    bootstrap_intervals,
)
from schemas.scores import ClassScore, Figure


class _Column(NamedTuple):
    """What a figure is the mean of, over the pairs of a class."""

    metric: str
    threshold: float | None
    found: Floats | Bools
    """(P,)."""
    baselines: Sequence[Floats | Bools]
    """(P,) of the full image and of the central box; empty where there is none."""

    def figure(self, own: Ints, interval: Floats) -> Figure:
        """Return the figure of the pairs ``own`` (K,) with its interval (2,)."""
        means = [float(each[own].mean()) for each in (self.found, *self.baselines)]
        low, high = interval.tolist()
        return Figure(self.metric, self.threshold, means[0], low, high, *means[1:])


def class_scores(
    names: Sequence[str],
    pairs: Pairs,
    rank: Ints,
    box_iou: Floats | None = None,
    box_threshold: float | None = None,
    sweep: Sweep | None = None,
) -> tuple[ClassScore, ...]:
    """Return the scores of each class, by name, of P pairs with the class names (P,) and ranks (P,).

    ``box_iou`` (P,) is that of the pairs' own boxes, cut at ``box_threshold``; without it GT-known and mean IoU are
    left out, as MaxBoxAcc is without a sweep. All classes are cut at the threshold that is best for all pairs together,
    which the intervals take as given. Each class draws 1,000 times from its own images: together as many draws as one
    figure of all pairs takes. Of a class with one image the interval has no width.
    """
    classes, of_pair = np.unique(np.array(names, dtype=object), return_inverse=True)
    columns = _columns(pairs, rank, box_iou, box_threshold, sweep)
    values = np.stack([column.found for column in columns], axis=1).astype(np.float64)
    groups = np.split(np.argsort(of_pair, kind="stable"), np.bincount(of_pair).cumsum()[:-1])
    scores = []
    for name, own in zip(classes, groups, strict=True):
        intervals = bootstrap_intervals(values[own], pairs.image[own])
        figures = [column.figure(own, interval) for column, interval in zip(columns, intervals, strict=True)]
        scores.append(ClassScore(str(name), len(own), **{figure.metric: figure for figure in figures}))
    return tuple(scores)


def _columns(
    pairs: Pairs, rank: Ints, box_iou: Floats | None, box_threshold: float | None, sweep: Sweep | None
) -> list[_Column]:
    overlaps = [pairs.baseline_iou(share) for share in (1.0, CENTRAL_SHARE)]
    right = [overlap >= IOU_DELTA for overlap in overlaps]
    columns = [_Column("top1_accuracy", None, rank == 0, ())]
    if box_iou is not None:
        columns.append(_Column("gt_known", box_threshold, box_iou >= IOU_DELTA, right))
        columns.append(_Column("mean_iou", box_threshold, box_iou, overlaps))
    if sweep is not None:
        best = int(accuracy_curves(sweep.largest_iou, [IOU_DELTA])[0].argmax())
        hits = sweep.largest_iou[:, best] >= IOU_DELTA
        columns.append(_Column("max_box_acc", float(THRESHOLDS[best]), hits, right))
    return columns
