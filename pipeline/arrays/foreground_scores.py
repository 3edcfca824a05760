"""What fused maps reach against true boxes, beside plain class maps: a half of the pairs chooses, the other scores."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.arrays import metrics
from pipeline.arrays.figure_ground import fuse, min_max
from pipeline.arrays.figures import THRESHOLDS, Pairs, Sweep, sweep_maps
from pipeline.arrays.maps import quantize
from pipeline.arrays.metrics import IOU_DELTA, V2_DELTAS, Bools, Floats, Ints
from schemas.options.box_rules import AUTO_THRESHOLD, Combination

COMBINATIONS: tuple[Combination, ...] = get_args(Combination)
"""The first one is taken where several are equally good: it was the safest one over five networks."""
SMOOTHING = 5
"""Neighbouring thresholds whose mean accuracy chooses a threshold: a single one follows the noise of few pairs."""
CLEARLY = 0.5
"""Standard errors of an accuracy by which another threshold or combination is clearly better."""
_MAPS_AT_ONCE = 32


class Chosen(NamedTuple):
    """A rule that was chosen on some pairs."""

    combination: Combination | None
    """None: plain class maps."""
    place: int
    """Of the threshold in THRESHOLDS."""

    @property
    def threshold(self) -> float:
        """The threshold, in (0, 1)."""
        return float(THRESHOLDS[self.place])


class Comparison(NamedTuple):
    """One figure of fused maps and of what they are compared with."""

    name: str
    fused: float
    plain: float
    interval: tuple[float, float]
    """95 % interval of fused − plain: whole images are drawn anew, both sides on the same ones."""


class Trial:
    """The sweeps of P pairs' maps, plain and fused in every way, over all thresholds."""

    def __init__(self, pairs: Pairs, class_maps: Tensor, figure: Tensor, combinations: Sequence[Combination]) -> None:
        """``class_maps`` (P, h, w) and ``figure`` (P, H, W): of each pair's class and image."""
        self.pairs = pairs
        self.sweeps: dict[Combination | None, Sweep] = {None: _sweep(pairs, class_maps)}
        for combination in combinations:
            self.sweeps[combination] = _sweep(pairs, fuse(class_maps[:, None], figure, combination)[:, 0])

    def choose(self, own: Bools, combinations: Sequence[Combination | None]) -> Chosen:
        """Return one of ``combinations`` with its threshold, by GT-known of the pairs ``own`` (P,).

        Of the thresholds that are not clearly worse than the best one it is the one nearest to AUTO_THRESHOLD, and the
        first of the combinations is taken unless another one is clearly better: a few hundred pairs choose no closer.
        """
        best, chosen = -1.0, Chosen(combinations[0], 0)
        for combination in combinations:
            curve = self.hits(combination)[own].mean(axis=0)
            smooth = np.convolve(np.pad(curve, SMOOTHING // 2, mode="edge"), np.ones(SMOOTHING) / SMOOTHING, "valid")
            highest = float(smooth[1:].max())
            clear = CLEARLY * float(np.sqrt(highest * (1 - highest) / own.sum()))
            fitting = 1 + np.flatnonzero(smooth[1:] >= highest - clear)
            if highest > best + clear:
                nearest = np.abs(THRESHOLDS[fitting] - AUTO_THRESHOLD).argmin()
                best, chosen = highest, Chosen(combination, int(fitting[nearest]))
        return chosen

    def hits(self, combination: Combination | None) -> NDArray[np.float64]:
        """Return (P, T): 1 where the largest component's box is right at a threshold."""
        found: NDArray[np.float64] = (self.sweeps[combination].largest_iou >= IOU_DELTA).astype(np.float64)
        return found

    def iou(self, rules: Sequence[Chosen], first: Bools) -> Floats:
        """Return (P,): the IoU of each pair's box, by the rule that was chosen on the half that the pair is not in.

        ``rules``: chosen on the pairs ``first`` (P,), and on the others.
        """
        by_first, by_other = (self.sweeps[one.combination].largest_iou[:, one.place] for one in rules)
        return np.where(first, by_other, by_first)

    def compare(
        self, fused: Sequence[Chosen], plain: Sequence[Chosen], first: Bools, final: Combination
    ) -> Iterator[Comparison]:
        """Yield the figures of all pairs, each by the rules that were chosen on the half that the pair is not in.

        MaxBoxAcc and MaxBoxAccV2 take the best threshold of the scored pairs by definition, for ``final``.
        """
        image = self.pairs.image
        one, other = (self.iou(rules, first) for rules in (fused, plain))
        yield of_means("GT-known at one threshold", one >= IOU_DELTA, other >= IOU_DELTA, image)
        curves = np.stack([self.hits(each) for each in (final, None)], axis=1)
        yield _best("MaxBoxAcc", curves, image, metrics.max_box_acc)
        every = [self.sweeps[each].any_iou for each in (final, None)]
        v2 = np.stack([np.stack([part >= delta for delta in V2_DELTAS], axis=1) for part in every], axis=1)
        yield _best("MaxBoxAccV2", v2.astype(np.float64), image, metrics.max_box_acc_v2)
        yield of_means("mean IoU", one, other, image)
        yield of_means("IoU >= 0.7", one >= 0.7, other >= 0.7, image)


def _sweep(pairs: Pairs, maps: Tensor) -> Sweep:
    scaled, _, _ = quantize(min_max(maps).numpy())
    pair = np.arange(len(maps))
    starts = range(0, len(maps), _MAPS_AT_ONCE)
    return sweep_maps(pairs, ((scaled[at : at + _MAPS_AT_ONCE], pair[at : at + _MAPS_AT_ONCE]) for at in starts))


def of_means(name: str, one: Floats | Bools, other: Floats | Bools, image: Ints) -> Comparison:
    """Compare the means of two figures (P,) of the same pairs; ``image`` (P,) names each pair's image."""
    gains = one.astype(np.float64) - other
    return Comparison(name, float(one.mean()), float(other.mean()), metrics.bootstrap_interval(gains, image))


def _best(name: str, both: Floats, image: Ints, statistic: Callable[[Floats], Floats]) -> Comparison:
    """Compare (N, 2, …) accuracies of fused and plain, whose best thresholds are chosen anew in each resample."""
    fused, plain = statistic(both.mean(axis=0))

    def gain(means: Floats) -> Floats:
        found = statistic(means)
        result: Floats = found[..., 0] - found[..., 1]
        return result

    return Comparison(name, float(fused), float(plain), metrics.bootstrap_interval(both, image, gain))


def centre_prior(figure: Tensor) -> Tensor:
    """Return the mean scaled map (1, H, W) of figure/ground maps (I, H, W): what is true of every photograph."""
    return min_max(figure).mean(0, keepdim=True)


def best_fitting(class_ids: Sequence[Sequence[int]], logits: Tensor) -> Tensor:
    """Return (P,) int64: the best-scoring of each pair's fitting classes, by ``logits`` (P, C)."""
    chosen = [max(ids, key=lambda one: float(row[one])) for ids, row in zip(class_ids, logits, strict=True)]
    return torch.tensor(chosen, dtype=torch.int64)
