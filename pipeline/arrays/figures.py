"""Computes the figures of an evaluation, with intervals and baselines, from arrays of pairs, boxes and maps.

A pair is an image and a true class of the image. Where several classes of the network fit a pair, the map and the box
of the best-ranked class count. A pair without a box has IoU 0. Accuracy and ILSVRC's localization count images: an
image is right where at least one of its pairs is right.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.arrays import metrics
from pipeline.arrays.boxes import level_boxes
from pipeline.arrays.maps import LEVELS
from pipeline.arrays.metrics import IOU_DELTA, V2_DELTAS, Bools, Convention, Floats, Ints
from schemas.options.box_rules import HEURISTIC_CLASSES
from schemas.scores import Figure

THRESHOLDS = np.arange(50) / 50
"""The thresholds at which MaxBoxAcc cuts a min–max scaled map: 0.00, 0.02, … 0.98."""


@dataclass(frozen=True)
class Pairs:
    """P pairs on I images, with their G true boxes."""

    n_images: int
    image: Ints
    """(P,) index of the pair's image, in [0, I)."""
    sizes_wh: Floats
    """(P, 2) width and height of the pair's image in pixels."""
    boxes: Floats
    """(G, 4) true boxes in pixels; ``convention`` tells whether xmax and ymax are half-open or inclusive."""
    owner: Ints
    """(G,) index of the pair of each true box, ascending."""
    convention: Convention

    def iou(self, boxes: Floats, pair: Ints) -> Floats:
        """Return (R,): the highest IoU of each half-open box (R, 4) with a true box of its pair (R,); 0 without one."""
        if self.convention == "inclusive":
            boxes = metrics.inclusive_pixels(boxes)
        return metrics.best_iou(boxes, pair, self.boxes, self.owner, self.convention)

    def hold(self, points: Floats, pair: Ints) -> Bools:
        """Return (R,): whether a true box of the pair (R,) contains the point (R, 2), x y; see metrics.pointing_hits.

        An inclusive box contains its last row and column of pixels entirely.
        """
        boxes = metrics.half_open_pixels(self.boxes) if self.convention == "inclusive" else self.boxes
        return metrics.pointing_hits(points, pair, boxes, self.owner)

    def baseline_iou(self, share: float) -> Floats:
        """Return (P,): the IoU of the centred box that covers ``share`` of each side of the pair's image."""
        return self.iou(metrics.central_boxes(self.sizes_wh, share), np.arange(len(self.image)))


class Guesses(NamedTuple):
    """R boxes of true classes."""

    pair: Ints
    """(R,) index of the box's pair."""
    rank: Ints
    """(R,) rank of the box's class in its image; 0 is the top-1 class."""
    iou: Floats
    """(R,) from ``Pairs.iou``."""


class Sweep(NamedTuple):
    """The IoU that the maps of the pairs reach when they are cut at each of T thresholds."""

    largest_iou: Floats
    """(P, T) IoU of the box of the largest component."""
    any_iou: Floats
    """(P, T) highest IoU of the boxes of all components."""
    pointed: Bools
    """(P,) whether the map's highest point lies in a true box."""


class PixelCounts(NamedTuple):
    """Numbers of pixels inside and outside the objects of K pairs that have masks."""

    pair: Ints
    """(K,) index of the pair."""
    counts: Floats
    """(K, 2, B) pixels inside and outside the object at B ascending scores of the pair's map."""
    central: Floats
    """(K, 2, 2) pixels inside and outside the object, which are outside (0) or inside (1) the central box."""

    def of(self, chosen: Bools) -> "PixelCounts":
        """Return the counts of the pairs for which ``chosen`` (K,) is True."""
        return PixelCounts(self.pair[chosen], self.counts[chosen], self.central[chosen])


def sweep_maps(pairs: Pairs, chunks: Iterable[tuple[NDArray[np.uint8], Ints]]) -> Sweep:
    """Return the sweep of stored maps; a chunk has maps (n, h, w) uint8, each spanning 0 to 255, and their pairs (n,).

    There is at most one map for each pair, and it covers the whole image; a pair without a map has IoU 0. A constant
    map must be all 0; it gives the box of the full image at threshold 0. Where several points are highest, the first
    one, row by row, counts.
    """
    n_pairs, n_levels = len(pairs.image), len(THRESHOLDS)
    levels = torch.tensor(THRESHOLDS * LEVELS, dtype=torch.float32)
    largest, anywhere = np.zeros(n_pairs * n_levels), np.zeros(n_pairs * n_levels)
    pointed = np.zeros(n_pairs, dtype=np.bool_)
    for maps, pair in chunks:
        n_maps, height, width = maps.shape
        cell_wh = pairs.sizes_wh[pair] / [width, height]
        found = level_boxes(torch.from_numpy(maps.astype(np.float32)), levels.expand(n_maps, -1), components="all")
        index, first = found.map_index.numpy(), found.component.numpy() == 0
        iou = pairs.iou(found.boxes_xyxy.double().numpy() * np.tile(cell_wh[index], 2), pair[index])
        place = pair[index] * n_levels + found.level_index.numpy()
        np.maximum.at(largest, place[first], iou[first])
        np.maximum.at(anywhere, place, iou)
        peak = maps.reshape(n_maps, -1).argmax(axis=1)
        points = (np.stack([peak % width, peak // width], axis=1) + 0.5) * cell_wh
        pointed[pair] = pairs.hold(points, pair)
    return Sweep(largest.reshape(n_pairs, -1), anywhere.reshape(n_pairs, -1), pointed)


class _Values(NamedTuple):
    """Values of all pairs or all images, whose mean is a figure."""

    values: Floats | Bools
    """(N,) of the output's boxes or maps; (N, …) where a statistic chooses among thresholds."""
    baselines: Sequence[Floats | Bools]
    """The same values of the full image and of the central box; empty where the figure has no baselines."""
    images: Ints
    """(N,) the image of each value; the bootstrap draws whole images."""


class Scorer:
    """Computes the figures of one set of pairs."""

    def __init__(self, pairs: Pairs, rank: Ints) -> None:
        """``rank`` (P,): rank of each pair's best-ranked class; a very high number where the output has no row."""
        self.pairs, self.rank = pairs, rank
        self._baselines = pairs.baseline_iou(1.0), pairs.baseline_iou(metrics.CENTRAL_SHARE)

    def accuracy(self, top: int) -> Iterator[Figure]:
        """Yield the share of images with a true class in the first ``top`` classes, and ILSVRC's error, 1 - share."""
        certain = np.ones(len(self.rank))
        hits = metrics.localization_hits(self.pairs.image, self.rank, certain, self.pairs.n_images, top)
        figure = _figure(f"top{top}_accuracy", _Values(hits, (), np.arange(len(hits))))
        yield from (figure, figure.as_error(f"top{top}_error"))

    def box_iou(self, guesses: Guesses) -> Floats:
        """Return (P,): the IoU of the box of each pair's best-ranked class; 0 for a pair without a box."""
        best = guesses.rank == self.rank[guesses.pair]
        return metrics.scatter_max(guesses.iou[best], guesses.pair[best], len(self.rank))

    def of_boxes(
        self, guesses: Guesses, threshold: float | None, tops: Sequence[int], iou: Floats | None = None
    ) -> Iterator[Figure]:
        """Yield GT-known, localization with its error for each of ``tops``, and mean IoU of boxes cut at one threshold.

        ``iou`` (P,) is the IoU of each pair's box; by default that is the box of the best-ranked class. ILSVRC allows
        five guesses, each a class with a box; here a guess is the class at one rank with its box.
        """
        iou = self.box_iou(guesses) if iou is None else iou
        yield _figure("gt_known", self._right(iou, IOU_DELTA), threshold)
        for top in tops:
            localization = _figure(f"top{top}_localization", self._localized(guesses, top), threshold)
            yield from (localization, localization.as_error(f"top{top}_localization_error"))
        yield _figure("mean_iou", _Values(iou, self._baselines, self.pairs.image), threshold)

    def of_five(self, guesses: Guesses) -> Iterator[Figure]:
        """Yield top-5 localization by the heuristic's five guesses, all of the first three ranks, and its error."""
        localization = _figure("top5_localization", self._localized(guesses, HEURISTIC_CLASSES))
        yield from (localization, localization.as_error("top5_localization_error"))

    def of_regressed(self, iou: Floats) -> Iterator[Figure]:
        """Yield MaxBoxAcc and MaxBoxAccV2 of regressed boxes with IoU ``iou`` (P,): accuracies without a threshold."""
        yield _figure("max_box_acc", self._right(iou, IOU_DELTA))
        yield self._v2(iou, _mean_of_parts)
        for delta in V2_DELTAS:
            yield _figure(f"max_box_acc_v2_at_{delta}", self._right(iou, delta))

    def of_sweep(self, sweep: Sweep) -> Iterator[Figure]:
        """Yield MaxBoxAcc, MaxBoxAccV2 with its three parts, and the pointing game."""
        yield self._best_cut("max_box_acc", sweep.largest_iou, IOU_DELTA)
        yield self._v2(sweep.any_iou, metrics.max_box_acc_v2)
        for delta in V2_DELTAS:
            yield self._best_cut(f"max_box_acc_v2_at_{delta}", sweep.any_iou, delta)
        centre = self.pairs.hold(self.pairs.sizes_wh / 2, np.arange(len(self.rank)))
        yield _figure("pointing_game", _Values(sweep.pointed, (centre, centre), self.pairs.image))

    def _v2(self, any_iou: Floats, statistic: Callable[[Floats], Floats]) -> Figure:
        """Return MaxBoxAccV2; ``statistic`` maps the accuracies of its parts to it."""
        parts = [self._right(any_iou, delta) for delta in V2_DELTAS]
        baselines = [np.stack(each, axis=1) for each in zip(*(part.baselines for part in parts), strict=True)]
        hits = np.stack([np.asarray(part.values, dtype=np.bool_) for part in parts], axis=1)
        return _figure("max_box_acc_v2", _Values(hits, baselines, self.pairs.image), statistic=statistic)

    def _best_cut(self, metric: str, iou: Floats, delta: float) -> Figure:
        threshold = metrics.best_threshold(metrics.accuracy_curves(iou, [delta])[0], THRESHOLDS)
        return _figure(metric, self._right(iou, delta), threshold, metrics.max_box_acc)

    def _right(self, iou: Floats, delta: float) -> _Values:
        return _Values(iou >= delta, [baseline >= delta for baseline in self._baselines], self.pairs.image)

    def _localized(self, guesses: Guesses, top: int) -> _Values:
        image, n_images = self.pairs.image, self.pairs.n_images
        hits = metrics.localization_hits(image[guesses.pair], guesses.rank, guesses.iou, n_images, top)
        baselines = [metrics.localization_hits(image, self.rank, iou, n_images, top) for iou in self._baselines]
        return _Values(hits, baselines, np.arange(n_images))


def pixel_figure(pairs: Pairs, pixels: PixelCounts) -> Figure:
    """Return PxAP over the pairs with masks.

    One baseline gives every pixel the score 1, the other one only the pixels in the central box.
    """
    average = metrics.pixel_average_precision
    low, high = metrics.bootstrap_interval(pixels.counts, pairs.image[pixels.pair], average)
    totals = pixels.counts.sum(axis=0), pixels.central.sum(axis=(0, 2))[:, None], pixels.central.sum(axis=0)
    value, full_image, central = (float(average(total)) for total in totals)
    return Figure("pxap", None, value, low, high, full_image, central)


def _mean_of_parts(accuracies: Floats) -> Floats:
    means: Floats = accuracies.mean(axis=-1)
    return means


def _figure(
    metric: str,
    values: _Values,
    threshold: float | None = None,
    statistic: Callable[[Floats], Floats] | None = None,
) -> Figure:
    means = values.values.astype(np.float64).mean(axis=0, keepdims=True)
    value = float((statistic(means) if statistic else means)[0])
    low, high = metrics.bootstrap_interval(values.values, values.images, statistic)
    full_image, central = (float(each.mean()) for each in values.baselines) if values.baselines else (None, None)
    return Figure(metric, threshold, value, low, high, full_image, central)
