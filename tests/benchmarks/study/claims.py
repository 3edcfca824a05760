"""The CAM paper's four claims, held against the study's numbers.

A claim is a list of comparisons on the same test scenes, each a difference that the claim says is above 0. Where the
whole 95 % intervals of all of them lie above 0 it holds, where only some do it holds in part; where none does, it does
not hold if one lies wholly below 0, and is undecided if all hold 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tests.benchmarks.study.intervals import Floats, MeanInterval, difference_of
from tests.benchmarks.study.results import Result
from tests.benchmarks.study.study_networks import NETWORKS, Way

Verdict = Literal["holds", "holds in part", "does not hold here", "undecided", "not measured"]
Measure = Literal["right", "extent"]
Results = Mapping[str, Sequence[Result]]
"""The finished trainings of each entry, by key, in the order of their seeds; an entry without one is not there."""

NEARLY = (100 - 37.1) / (100 - 26.7)
"""What "nearly" is: the paper's own share of right localizations, from labels over from boxes, 0.858. Its test top-5
errors are 37.1 % (GoogLeNet-GAP) and 26.7 % (GoogLeNet that learned from boxes)."""

MEASURES: Mapping[Measure, str] = {"right": "MaxBoxAcc", "extent": "extent at 20 %"}


@dataclass(frozen=True)
class Side:
    """One side of a comparison: an entry that localizes one way."""

    key: str
    way: Way

    def __str__(self) -> str:
        title = next((entry.title for entry in NETWORKS if entry.key == self.key), self.key)
        return f"{title} ({self.way})"

    def values(self, results: Results, measure: Measure) -> list[Floats]:
        """Return the measure (N,) of each seed."""
        return [getattr(result.found[self.way], measure) for result in results[self.key]]


@dataclass(frozen=True)
class Comparison:
    """A difference that the claim says is above 0."""

    more: Side
    less: Side | None
    """None: the box in the middle of the picture."""
    measure: Measure = "right"
    share: float = 1.0
    """``less`` counts so much of itself."""

    def entries(self) -> list[str]:
        """Return the entries that it needs."""
        return [self.more.key, *([self.less.key] if self.less else [])]

    def about(self) -> str:
        """Return the difference in words."""
        times = "" if self.share == 1 else f"{self.share:.3f} × "
        less = f"{times}{self.less}" if self.less else "the centred box"
        return f"{self.more} less {less}, {MEASURES[self.measure]}"

    def difference(self, results: Results, central: Floats) -> MeanInterval:
        """Return the difference; ``central`` (N,) is 1 where the centred box is right."""
        others = self.less.values(results, self.measure) if self.less else [central]
        return difference_of(self.more.values(results, self.measure), others, self.share)


@dataclass(frozen=True)
class Claim:
    """What the paper says, and what has to be above 0 if it is so."""

    text: str
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True)
class Judged:
    """A claim and what became of it."""

    claim: Claim
    differences: tuple[tuple[str, MeanInterval], ...]
    """Of the comparisons that could be made, in words and numbers."""
    missing: tuple[str, ...]
    """Entries without a finished training that the claim needs."""

    @property
    def verdict(self) -> Verdict:
        """What the comparisons come to; without all of them "not measured"."""
        if self.missing:
            return "not measured"
        above = [difference.low > 0 for _, difference in self.differences]
        if any(above):
            return "holds" if all(above) else "holds in part"
        return "does not hold here" if any(difference.high < 0 for _, difference in self.differences) else "undecided"


_FC = (("vgg11_gap", "vgg11_fc"), ("alexnet_gap", "alexnet_fc"))
_GMP = (("vgg11_gap", "vgg11_gmp"), ("googlenet_gap", "googlenet_gmp"), ("alexnet_gap", "alexnet_gmp"))
_BOXES = (("vgg11_gap", "vgg11_boxes"), ("googlenet_gap", "googlenet_boxes"))
_FC_WAYS: tuple[Way, ...] = ("backprop", "gradcam")
_MEASURES: tuple[Measure, ...] = ("right", "extent")

CLAIMS = (
    Claim(
        "Fully connected layers lose localization. By one and the same method, backprop, a network with them"
        " localizes worse than its form with global average pooling",
        tuple(Comparison(Side(gap, "backprop"), Side(fc, "backprop")) for gap, fc in _FC),
    ),
    Claim(
        "Global average pooling in their place keeps localization. The class activation maps of that form localize"
        " better than either method does on the form with fully connected layers, and than the centred box",
        (
            *(Comparison(Side(gap, "cam"), Side(fc, way)) for gap, fc in _FC for way in _FC_WAYS),
            *(Comparison(Side(gap, "cam"), None) for gap, _ in _FC),
        ),
    ),
    Claim(
        "Global average pooling finds the object's extent where global max pooling finds one part. GAP's boxes are"
        " larger at the paper's threshold, and more often right",
        tuple(Comparison(Side(gap, "cam"), Side(gmp, "cam"), measure) for gap, gmp in _GMP for measure in _MEASURES),
    ),
    Claim(
        "A network that learned from image labels alone localizes nearly as well as one that learned from boxes:"
        f" nearly is the paper's own ratio, {NEARLY:.3f} of the right localizations",
        tuple(Comparison(Side(gap, "cam"), Side(boxes, "regress"), share=NEARLY) for gap, boxes in _BOXES),
    ),
)


def judge(claim: Claim, results: Results, central: Floats) -> Judged:
    """Return what becomes of a claim; ``central`` (N,) is 1 where the centred box is right on a test scene."""
    needed = dict.fromkeys(key for one in claim.comparisons for key in one.entries())
    able = [one for one in claim.comparisons if all(key in results for key in one.entries())]
    differences = tuple((one.about(), one.difference(results, np.asarray(central, np.float64))) for one in able)
    return Judged(claim, differences, tuple(key for key in needed if key not in results))
