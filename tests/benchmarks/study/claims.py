"""Check the CAM paper's four claims with the study's numbers.

A claim is a list of comparisons on the same test scenes. Each comparison is a difference that is above 0 if the claim
is true. The claim holds if the 95 % intervals of all differences lie above 0, and holds in part if only some do. If no
interval lies above 0, the claim does not hold if one lies below 0, and is undecided if all intervals contain 0.
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
"""The finished trainings of each entry, by the entry's key, in the order of seeds; never an empty sequence."""

NEARLY = (100 - 37.1) / (100 - 26.7)
"""The factor for "nearly": the paper's share of right localizations from labels, divided by that from boxes; 0.858.

The paper's top-5 errors on its test set are 37.1 % (GoogLeNet-GAP) and 26.7 % (GoogLeNet that learned from boxes).
"""

MEASURES: Mapping[Measure, str] = {"right": "MaxBoxAcc", "extent": "extent at 20 %"}


@dataclass(frozen=True)
class Side:
    """One side of a comparison: an entry (by its key) and its way of localizing."""

    key: str
    way: Way

    def __str__(self) -> str:
        title = next((entry.title for entry in NETWORKS if entry.key == self.key), self.key)
        return f"{title} ({self.way})"

    def values(self, results: Results, measure: Measure) -> list[Floats]:
        """Return the measure (N,) of each seed for N test scenes."""
        return [getattr(result.found[self.way], measure) for result in results[self.key]]


@dataclass(frozen=True)
class Comparison:
    """A difference that is above 0 if the claim is true."""

    more: Side
    less: Side | None
    """The side that is subtracted; None stands for a box in the middle of the picture."""
    measure: Measure = "right"
    share: float = 1.0
    """Factor by which ``less`` is multiplied before it is subtracted."""

    def entries(self) -> list[str]:
        """Return the keys of the entries in the comparison."""
        return [self.more.key, *([self.less.key] if self.less else [])]

    def about(self) -> str:
        """Return the difference in words."""
        times = "" if self.share == 1 else f"{self.share:.3f} × "
        less = f"{times}{self.less}" if self.less else "the centred box"
        return f"{self.more} less {less}, {MEASURES[self.measure]}"

    def difference(self, results: Results, central: Floats) -> MeanInterval:
        """Return the mean difference; ``central`` (N,) is 1 where the centred box is right on a test scene."""
        others = self.less.values(results, self.measure) if self.less else [central]
        return difference_of(self.more.values(results, self.measure), others, self.share)


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and the comparisons that are above 0 if the claim is true."""

    text: str
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True)
class Judged:
    """A claim with the results of its comparisons."""

    claim: Claim
    differences: tuple[tuple[str, MeanInterval], ...]
    """The comparisons whose entries are trained, in words and as means with intervals."""
    missing: tuple[str, ...]
    """Keys of the entries that the claim needs and that have no finished training."""

    @property
    def verdict(self) -> Verdict:
        """The verdict on the claim; "not measured" where an entry is missing."""
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
    """Compare as the claim needs it; ``central`` (N,) is 1 where the centred box is right on a test scene."""
    needed = dict.fromkeys(key for one in claim.comparisons for key in one.entries())
    able = [one for one in claim.comparisons if all(key in results for key in one.entries())]
    differences = tuple((one.about(), one.difference(results, np.asarray(central, np.float64))) for one in able)
    return Judged(claim, differences, tuple(key for key in needed if key not in results))
