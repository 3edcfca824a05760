"""Localization metrics on arrays: IoU, ILSVRC's rule, MaxBoxAcc and V2, PxAP, pointing game, baselines, intervals.

Boxes are (…, 4) float64, xmin ymin xmax ymax, in pixels; both sides of a comparison use one pixel frame. Row i of a
flat table belongs to ``owner[i]``, which is an image, or a pair of an image and a class.

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
"""Least IoU of a right box in ILSVRC's rule, GT-known and MaxBoxAcc."""
V2_DELTAS = (0.3, 0.5, 0.7)
"""The three least IoUs of MaxBoxAccV2."""
CENTRAL_SHARE = 0.7
"""Share of the width and of the height that the central baseline box covers."""
RESAMPLES = 1000
"""Bootstrap resamples; 25 of them lie below the 2.5 % quantile."""
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
    """Return (N, M): the IoU of each box of ``boxes_a`` (N, 4) and each box of ``boxes_b`` (M, 4); see paired_iou."""
    return paired_iou(boxes_a[:, None], boxes_b[None, :], convention)


def inclusive_pixels(boxes_half_open: Floats) -> Floats:
    """Return half-open boxes (…, 4) as inclusive boxes: xmax and ymax are 1 less."""
    shifted: Floats = boxes_half_open - np.array([0.0, 0.0, 1.0, 1.0])
    return shifted


def half_open_pixels(boxes_inclusive: Floats) -> Floats:
    """Return inclusive boxes (…, 4) as half-open boxes: xmax and ymax are 1 more, the far edges of the last pixels."""
    shifted: Floats = boxes_inclusive + np.array([0.0, 0.0, 1.0, 1.0])
    return shifted


def best_iou(
    boxes: Floats, owner: Ints, truth: Floats, truth_owner: Ints, convention: Convention = "half-open"
) -> Floats:
    """Return (R,): each box's highest IoU with a truth box of the same owner; 0 where the owner has no truth box.

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


def scatter_max(values: Floats, owner: Ints, n_owners: int) -> Floats:
    """Return (n_owners,): the maximum of each owner's values (R,) in [0, 1]; 0 for an owner without values."""
    out = np.zeros(n_owners)
    np.maximum.at(out, owner, values)
    return out


def localization_hits(owner: Ints, rank: Ints, box_iou: Floats, n_images: int, top: int) -> Bools:
    """Return (n_images,) by ILSVRC's rule: whether a guess of rank < ``top`` has a true label and IoU >= 0.5.

    The R rows are the guesses whose label is true for their image ``owner`` (R,). ``box_iou`` (R,) is a guess's highest
    IoU with a true box of the label. An image without such a guess is False.
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
    """Return MaxBoxAcc (…): the highest accuracy over the T thresholds of curves (…, T) for IoU >= 0.5."""
    best: Floats = curves.max(axis=-1)
    return best


def max_box_acc_v2(curves: Floats) -> Floats:
    """Return MaxBoxAccV2 (…) of curves (…, D, T): the mean over the D values of V2_DELTAS of the highest accuracy.

    The curves must count the best box among all components of a map. Unlike in wsolevaluation, a hole inside a
    component gives no box.
    """
    mean: Floats = max_box_acc(curves).mean(axis=-1)
    return mean


def best_threshold(curve: Floats, thresholds: Floats) -> float:
    """Return the one of ``thresholds`` (T,) where ``curve`` (T,) is highest; the first of equally good ones."""
    return float(thresholds[int(curve.argmax())])


def pixel_average_precision(counts: Floats) -> Floats:
    """Return PxAP (…) of counts (…, 2, B): the numbers of pixels inside and outside objects at B ascending scores.

    It is the average precision of Choe et al. over the pixels of all images together: Σ precision · Δrecall from the
    highest score to the lowest. All pixels of one score are added in one step. Counts multiplied by a constant give the
    same result. Without a pixel inside an object PxAP is 0.
    """
    found = counts[..., ::-1].cumsum(axis=-1)
    inside, all_found = found[..., 0, :], found.sum(axis=-2)
    precision = np.divide(inside, all_found, out=np.zeros(inside.shape), where=all_found > 0)
    total = inside[..., -1:]
    gained = np.divide(counts[..., 0, ::-1], total, out=np.zeros(inside.shape), where=total > 0)
    precisions: Floats = (precision * gained).sum(axis=-1)
    return precisions


def precision_recall(counts: Floats) -> Floats:
    """Return recall and precision (≤ B, 2) of counts (2, B) at each score, from the highest score of a pixel on."""
    inside, outside = counts[:, ::-1].cumsum(axis=1)
    reached = inside + outside > 0
    inside, outside = inside[reached], outside[reached]
    return np.stack([inside / max(inside[-1], 1), inside / (inside + outside)], axis=1)


def pointing_hits(points: Floats, owner: Ints, truth: Floats, truth_owner: Ints) -> Bools:
    """Return (R,): whether each point (R, 2), x y in pixels, lies in a half-open truth box of its owner.

    The paper also accepts points up to 15 pixels outside the object; this function does not.
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

    ``images`` (N,) gives the image of each row; the rows of one image are drawn together. ``statistic`` turns the
    resampled means (B, …) into (B,): for MaxBoxAcc it takes the maximum over the thresholds. Without a statistic
    ``values`` must be (N,). The same ``seed`` gives the same interval. Raises ValueError for N = 0.
    """
    means = _bootstrap_means(values, images, seed)
    low, high = np.quantile(means if statistic is None else statistic(means), _TAILS)
    return float(low), float(high)


def bootstrap_intervals(values: Floats, images: Ints, seed: int = 0) -> Floats:
    """Return (C, 2): the ``bootstrap_interval`` of each column of ``values`` (N, C); all columns share the draws."""
    intervals: Floats = np.quantile(_bootstrap_means(values, images, seed), _TAILS, axis=0).T
    return intervals


def _bootstrap_means(values: Floats | Bools, images: Ints, seed: int) -> Floats:
    """Return (RESAMPLES, …): means of ``values`` (N, …) over ``images`` (N,) drawn with replacement."""
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
    """Return (RESAMPLES, C): means over drawn images, from each image's sums (I, C) and numbers of rows (I,)."""
    n_images = len(counts)
    at_once = max(1, _CELLS_AT_ONCE // n_images)
    parts = []
    for start in range(0, RESAMPLES, at_once):
        n_draws = min(at_once, RESAMPLES - start)
        chosen = rng.integers(0, n_images, size=(n_draws, n_images)) + n_images * np.arange(n_draws)[:, None]
        times = np.bincount(chosen.ravel(), minlength=chosen.size).reshape(chosen.shape).astype(np.float64)
        parts.append((times @ sums) / (times @ counts)[:, None])
    return np.concatenate(parts)
