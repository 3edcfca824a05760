"""Computes the figures of each class over the pairs of that class, from the arrays of an evaluation."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.arrays.figures import THRESHOLDS, Pairs, PixelCounts, Sweep, pixel_figure
from pipeline.arrays.metrics import (
    CENTRAL_SHARE,
    IOU_DELTA,
    V2_DELTAS,
    Bools,
    Floats,
    Ints,
    accuracy_curves,
    bootstrap_intervals,
)
from schemas.scores import ClassScore, Figure


class _Column(NamedTuple):
    """The values of all pairs; their mean over the pairs of a class is a figure of that class."""

    metric: str
    threshold: float | None
    values: Floats | Bools
    """(P,) of the output's boxes or maps."""
    baselines: Sequence[Floats | Bools]
    """(P,) the same values of the full image and of the central box; empty where the figure has no baselines."""

    def figure(self, own: Ints, interval: Floats) -> Figure:
        """Return the figure of the pairs ``own`` (K,) with its interval (2,)."""
        means = [float(each[own].mean()) for each in (self.values, *self.baselines)]
        low, high = interval.tolist()
        return Figure(self.metric, self.threshold, means[0], low, high, *means[1:])


def class_scores(
    names: Sequence[str],
    pairs: Pairs,
    rank: Ints,
    box_iou: Floats | None = None,
    box_threshold: float | None = None,
    sweep: Sweep | None = None,
    pixels: PixelCounts | None = None,
) -> tuple[ClassScore, ...]:
    """Return the scores of each class, sorted by name, of P pairs with class ``names`` (P,) and ``rank`` (P,).

    ``box_iou`` (P,) is the IoU of the pairs' boxes, cut at ``box_threshold``. Without it there is no GT-known, top-1
    localization and mean IoU. Without ``sweep`` there is no MaxBoxAcc, MaxBoxAccV2 and pointing game, and without
    ``pixels`` of a class no PxAP. Top-1 localization counts pairs: a pair is right where its class is the top-1 class
    and its box is right. All classes use the thresholds that are best for all pairs together, and the intervals treat
    these thresholds as fixed. The bootstrap draws 1,000 times from the images of each class. The interval of a class
    with one image has width 0.
    """
    classes, of_pair = np.unique(np.array(names, dtype=object), return_inverse=True)
    columns = _columns(pairs, rank, box_iou, box_threshold, sweep)
    values = np.stack([column.values for column in columns], axis=1).astype(np.float64)
    groups = np.split(np.argsort(of_pair, kind="stable"), np.bincount(of_pair).cumsum()[:-1])
    scores = []
    for name, own in zip(classes, groups, strict=True):
        intervals = bootstrap_intervals(values[own], pairs.image[own])
        figures = [column.figure(own, interval) for column, interval in zip(columns, intervals, strict=True)]
        if pixels is not None and (masked := np.isin(pixels.pair, own)).any():
            figures.append(pixel_figure(pairs, pixels.of(masked)))
        scores.append(ClassScore(str(name), len(own), **{figure.metric: figure for figure in figures}))
    return tuple(scores)


def _columns(
    pairs: Pairs, rank: Ints, box_iou: Floats | None, box_threshold: float | None, sweep: Sweep | None
) -> list[_Column]:
    overlaps = [pairs.baseline_iou(share) for share in (1.0, CENTRAL_SHARE)]
    right = [overlap >= IOU_DELTA for overlap in overlaps]
    is_top1 = rank == 0
    columns = [_Column("top1_accuracy", None, is_top1, ())]
    if box_iou is not None:
        located = [is_top1 & each for each in (box_iou >= IOU_DELTA, *right)]
        columns.append(_Column("gt_known", box_threshold, box_iou >= IOU_DELTA, right))
        columns.append(_Column("top1_localization", box_threshold, located[0], located[1:]))
        columns.append(_Column("mean_iou", box_threshold, box_iou, overlaps))
    if sweep is not None:
        best = int(accuracy_curves(sweep.largest_iou, [IOU_DELTA])[0].argmax())
        hits = sweep.largest_iou[:, best] >= IOU_DELTA
        columns.append(_Column("max_box_acc", float(THRESHOLDS[best]), hits, right))
        cuts = accuracy_curves(sweep.any_iou, V2_DELTAS).argmax(axis=1)
        shares = [_share_of_deltas(sweep.any_iou[:, cuts]), *(_share_of_deltas(each[:, None]) for each in overlaps)]
        columns.append(_Column("max_box_acc_v2", None, shares[0], shares[1:]))
        centre = pairs.hold(pairs.sizes_wh / 2, np.arange(len(rank)))
        columns.append(_Column("pointing_game", None, sweep.pointed, (centre, centre)))
    return columns


def _share_of_deltas(iou: Floats) -> Floats:
    """Return (P,): the share of V2_DELTAS that the IoU reaches; ``iou``: (P, D), or (P, 1) for all deltas."""
    reached: Floats = (iou >= np.array(V2_DELTAS)).mean(axis=1)
    return reached
