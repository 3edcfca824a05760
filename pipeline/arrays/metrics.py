"""Localization metrics on arrays: IoU, ILSVRC's rule, MaxBoxAcc and V2, PxAP, pointing game, baselines, intervals.

Boxes are (…, 4) float64, xmin ymin xmax ymax, in pixels of one frame for both sides of a comparison. "Owner" arrays tie
flat rows to what they belong to (an image, or an image and a class): row i of a table belongs to ``owner[i]``.

References: Russakovsky et al. 2015 (arXiv 1409.0575) for the ILSVRC rule; Choe et al. 2020 (arXiv 2001.07437 and
2007.04178) for MaxBoxAcc, GT-known over thresholds, MaxBoxAccV2 and PxAP; Zhang et al. 2018 (arXiv 1608.00507)
for the pointing game.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Convention = Literal["half-open", "inclusive"]

IOU_DELTA = 0.5
"""IoU from which a box counts as right: ILSVRC, GT-known, MaxBoxAcc."""
V2_DELTAS = (0.3, 0.5, 0.7)
"""The three demands of MaxBoxAccV2."""
CENTRAL_SHARE = 0.7
"""Share of the width and of the height that the central baseline box covers."""
RESAMPLES = 1000
"""Bootstrap resamples: the 2.5 % quantile then rests on 25 of them."""
_TAILS = (0.025, 0.975)
_CELLS_AT_ONCE = 4_000_000


def paired_iou(boxes_a: Floats, boxes_b: Floats, convention: Convention = "half-open") -> Floats:
    """Return the IoU of boxes broadcast against each other, (…, 4) and (…, 4) -> (…), in [0, 1].

    "half-open": width = xmax - xmin. "inclusive": xmax and ymax are the last pixels, width = xmax - xmin + 1 (ILSVRC,
    wsolevaluation). A pair whose union has no area has IoU 0.
    """
    extra = 1.0 if convention == "inclusive" else 0.0
    low = np.maximum(boxes_a[..., :2], boxes_b[..., :2])
    high = np.minimum(boxes_a[..., 2:], boxes_b[..., 2:])
    overlap = np.clip(high - low + extra, 0, None).prod(axis=-1)
    area_a = np.clip(boxes_a[..., 2:] - boxes_a[..., :2] + extra, 0, None).prod(axis=-1)
    area_b = np.clip(boxes_b[..., 2:] - boxes_b[..., :2] + extra, 0, None).prod(axis=-1)
    union = area_a + area_b - overlap
    shares: Floats = np.divide(overlap, union, out=np.zeros_like(union), where=union > 0)
    return shares


def iou(boxes_a: Floats, boxes_b: Floats, convention: Convention = "half-open") -> Floats:
    """Return the IoU of each box of ``boxes_a`` (N, 4) with each one of ``boxes_b`` (M, 4), (N, M); see paired_iou."""
    return paired_iou(boxes_a[:, None], boxes_b[None, :], convention)


def inclusive_pixels(boxes_half_open: Floats) -> Floats:
    """Return half-open boxes (…, 4) as inclusive ones: xmax and ymax one less, so that +1 gives the same size."""
    shifted: Floats = boxes_half_open - np.array([0.0, 0.0, 1.0, 1.0])
    return shifted


def half_open_pixels(boxes_inclusive: Floats) -> Floats:
    """Return inclusive boxes (…, 4) as half-open ones: xmax and ymax one more, the far edges of the last pixels."""
    shifted: Floats = boxes_inclusive + np.array([0.0, 0.0, 1.0, 1.0])
    return shifted


def best_iou(
    boxes: Floats, owner: Ints, truth: Floats, truth_owner: Ints, convention: Convention = "half-open"
) -> Floats:
    """Return (R,): each box's highest IoU with a truth box of the same owner; 0 where the owner has none.

    ``boxes`` (R, 4) with ``owner`` (R,); ``truth`` (G, 4) with ``truth_owner`` (G,) in ascending order.
    """
    row, truth_row = _same_owner(owner, truth_owner)
    best = np.zeros(len(boxes))
    np.maximum.at(best, row, paired_iou(boxes[row], truth[truth_row], convention))
    return best


def _same_owner(owner: Ints, truth_owner: Ints) -> tuple[Ints, Ints]:
    """Return the index pairs (row, truth row) that share an owner; ``truth_owner`` is sorted."""
    start = np.searchsorted(truth_owner, owner, side="left")
    counts = np.searchsorted(truth_owner, owner, side="right") - start
    row = np.repeat(np.arange(len(owner)), counts)
    place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    return row, np.repeat(start, counts) + place


def best_ranked(owner: Ints, rank: Ints) -> Ints:
    """Return the row index of each owner's lowest rank, ordered by owner; of equal ranks the first row."""
    order = np.lexsort((np.arange(len(owner)), rank, owner))
    _, first = np.unique(owner[order], return_index=True)
    return order[first]


def scatter_max(values: Floats, owner: Ints, n_owners: int) -> Floats:
    """Return (n_owners,): the maximum of each owner's values (R,) in [0, 1]; 0 for an owner without any."""
    out = np.zeros(n_owners)
    np.maximum.at(out, owner, values)
    return out


def localization_hits(owner: Ints, rank: Ints, box_iou: Floats, n_images: int, top: int) -> Bools:
    """Return (n_images,): ILSVRC's rule, right where a guess of rank < ``top`` has a true label and IoU >= 0.5.

    Rows (R,) are the guesses whose label is true for image ``owner``; ``box_iou`` is the best with a box of that label.
    An image without such a guess is wrong.
    """
    right = (rank < top) & (box_iou >= IOU_DELTA)
    hits = np.zeros(n_images, dtype=np.bool_)
    hits[owner[right]] = True
    return hits


def accuracy_curves(ious: Floats, deltas: Sequence[float] = V2_DELTAS) -> Floats:
    """Return (D, T): the share of the N maps whose box at each of T thresholds has IoU >= each of D ``deltas``.

    ``ious`` (N, T) is 0 where a map gives no box. Raises ValueError for N = 0.
    """
    if not len(ious):
        raise ValueError("accuracy of no map")
    return np.stack([(ious >= delta).mean(axis=0) for delta in deltas])


def max_box_acc(curves: Floats) -> Floats:
    """Return (…): MaxBoxAcc, the best accuracy over the thresholds of curves (…, T); by definition at IoU >= 0.5."""
    best: Floats = curves.max(axis=-1)
    return best


def max_box_acc_v2(curves: Floats) -> Floats:
    """Return (…): MaxBoxAccV2 of curves (…, D, T), the mean over V2_DELTAS of each one's best accuracy.

    The curves are those of the best box among ALL components of a map. Unlike wsolevaluation, holes inside a component
    are no boxes of their own.
    """
    mean: Floats = max_box_acc(curves).mean(axis=-1)
    return mean


def best_threshold(curve: Floats, thresholds: Floats) -> float:
    """Return the threshold (T,) where ``curve`` (T,) is highest; of equally good ones the lowest."""
    return float(thresholds[int(curve.argmax())])


def pixel_average_precision(counts: Floats) -> Floats:
    """Return (…): PxAP of counts (…, 2, B): pixels inside and outside objects by score, in ascending order of score.

    The average precision of Choe et al., Σ precision · Δrecall from the highest score to the lowest, over the pixels of
    all images together; pixels of equal score come together. Scaling the counts changes nothing; without a pixel
    inside it is 0.
    """
    found = counts[..., ::-1].cumsum(axis=-1)
    inside, all_found = found[..., 0, :], found.sum(axis=-2)
    precision = np.divide(inside, all_found, out=np.zeros(inside.shape), where=all_found > 0)
    total = inside[..., -1:]
    gained = np.divide(counts[..., 0, ::-1], total, out=np.zeros(inside.shape), where=total > 0)
    precisions: Floats = (precision * gained).sum(axis=-1)
    return precisions


def precision_recall(counts: Floats) -> Floats:
    """Return (B, 2): recall and precision of counts (2, B) at each score, from the highest that a pixel has."""
    inside, outside = counts[:, ::-1].cumsum(axis=1)
    reached = inside + outside > 0
    inside, outside = inside[reached], outside[reached]
    return np.stack([inside / max(inside[-1], 1), inside / (inside + outside)], axis=1)


def pointing_hits(points: Floats, owner: Ints, truth: Floats, truth_owner: Ints) -> Bools:
    """Return (R,): does the map's highest point (R, 2), x y, lie in a truth box of its owner, half-open.

    Strict: the paper forgives 15 pixels outside the object, this does not.
    """
    row, truth_row = _same_owner(owner, truth_owner)
    boxes = truth[truth_row]
    inside = ((points[row] >= boxes[:, :2]) & (points[row] < boxes[:, 2:])).all(axis=1)
    hits = np.zeros(len(points), dtype=np.bool_)
    hits[row[inside]] = True
    return hits


def central_boxes(sizes_wh: Floats, share: float = CENTRAL_SHARE) -> Floats:
    """Return (N, 4): the centred box that covers ``share`` of width and height of images (N, 2); 1 = the full image."""
    margin = sizes_wh * (1 - share) / 2
    return np.concatenate([margin, sizes_wh - margin], axis=1)


def bootstrap_interval(
    values: Floats | Bools, images: Ints, statistic: Callable[[Floats], Floats] | None = None, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean of ``values`` (N, …), resampling whole images 1,000 times.

    ``images`` (N,) names each row's image: rows of one image are drawn together. ``statistic`` turns the resampled
    means (B, …) into (B,), default: they already are; for MaxBoxAcc it takes the maximum over thresholds. The seed
    fixes the result. Raises ValueError for N = 0.
    """
    means = _bootstrap_means(values, images, seed)
    low, high = np.quantile(means if statistic is None else statistic(means), _TAILS)
    return float(low), float(high)


def bootstrap_intervals(values: Floats, images: Ints, seed: int = 0) -> Floats:
    """Return (C, 2): bootstrap_interval of each column of ``values`` (N, C), by the same draws."""
    intervals: Floats = np.quantile(_bootstrap_means(values, images, seed), _TAILS, axis=0).T
    return intervals


def _bootstrap_means(values: Floats | Bools, images: Ints, seed: int) -> Floats:
    """Return (RESAMPLES, …) means of ``values`` (N, …) over images (N,) drawn anew."""
    if not len(values):
        raise ValueError("interval of no value")
    _, image = np.unique(images, return_inverse=True)
    n_images = int(image.max()) + 1
    rows = values.reshape(len(values), -1).astype(np.float64)
    sums = np.zeros((n_images, rows.shape[1]))
    np.add.at(sums, image, rows)
    counts = np.bincount(image, minlength=n_images).astype(np.float64)
    return _resampled_means(sums, counts, np.random.default_rng(seed)).reshape(RESAMPLES, *values.shape[1:])


def _resampled_means(sums: Floats, counts: Floats, rng: np.random.Generator) -> Floats:
    """Return (RESAMPLES, C) means of rows drawn image-wise, from each image's sums (I, C) and row counts (I,)."""
    n_images = len(counts)
    at_once = max(1, _CELLS_AT_ONCE // n_images)
    parts = []
    for start in range(0, RESAMPLES, at_once):
        n_draws = min(at_once, RESAMPLES - start)
        chosen = rng.integers(0, n_images, size=(n_draws, n_images)) + n_images * np.arange(n_draws)[:, None]
        times = np.bincount(chosen.ravel(), minlength=chosen.size).reshape(chosen.shape).astype(np.float64)
        parts.append((times @ sums) / (times @ counts)[:, None])
    return np.concatenate(parts)
