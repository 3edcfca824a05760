"""The options of the jobs that cut boxes from maps."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from schemas.options.config import COMMA_SEPARATED, LeaseConfig, file_option, option

BoxRuleName = Literal["auto", "paper", "heuristic", "all-components"]
Combination = Literal["sumprod", "product", "sum"]
"""The formula that fuses a class map N and a figure/ground map P in [0, 1]: (N + P) / 2 + N·P, N·P, (N + P) / 2."""

AUTO_THRESHOLD = 0.36
"""Threshold of ``--box-rule auto`` for a map scaled to [0, 1], plain or fused, if a network's file has no other one.

It was measured with MobileNetV2 and SqueezeNet on photographs of ImageNet, and with fused maps of three networks on
other photographs.
"""
RIGHT_SHARE = 0.7
"""Assumed share of boxes of a true class with an IoU of at least 0.5, for networks without a measured share."""
MIN_PROB = 0.05
"""With --box-rule auto, classes of a lower probability have no box, except the most probable class of an image.

Of 1,500 boxes of the five most probable classes on 300 photographs (MobileNetV2), 70 % were boxes of classes with a
probability under 0.1.
"""
PAPER_THRESHOLD = 0.2
"""The threshold of Zhou et al. 2016: 20 % of the map's maximum."""
FIRST_BOXES: dict[str, Any] = {"min_prob": 0.0, "foreground": "off"}
"""The values of these settings in outputs of versions that did not have them as options."""
HEURISTIC_THRESHOLDS = (0.2, 0.5)
"""Thresholds of the loose box, from the paper, and of the tight box, for which the paper gives no value."""
NO_CUT = (0.0,)
"""The thresholds of boxes that a box head predicts, because these boxes are not cut from maps."""
HEURISTIC_CLASSES = 3
"""Number of classes of the heuristic's five boxes."""


class BoxConfig(LeaseConfig):
    """The options that choose how boxes are cut from maps."""

    threshold: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], COMMA_SEPARATED] = option(
        (AUTO_THRESHOLD,),
        "where maps are cut; several, comma-separated, allowed. auto: share of the way from the map's minimum to its"
        f" maximum, default: the network's own, or {AUTO_THRESHOLD}; other rules: share of the maximum, default:"
        f" {PAPER_THRESHOLD}, heuristic: {','.join(map(str, HEURISTIC_THRESHOLDS))}",
        "Localization",
        min_length=1,
    )
    box_rule: BoxRuleName = option(
        "auto",
        "auto: the largest connected component's box, where the network's maps are cut best; paper: that at 20 % of"
        " the maximum; heuristic: the paper's five guesses an image, a tight and a loose box of the first two classes"
        " and a loose one of the third; all-components: a box for each",
        "Localization",
    )
    min_area: float = option(0.0, "leave out boxes under this share of the image's area", "Localization", ge=0, lt=1)
    min_prob: float = option(
        MIN_PROB,
        "leave out boxes of classes under this probability; the most probable class keeps its box, and so do classes"
        " that --classes names; with other rules than auto the default is 0",
        "Localization",
        ge=0,
        le=1,
    )
    foreground: str = file_option(
        "auto",
        "figure/ground map that carves boxes out of the class maps: a file of `camlake foreground`; off; auto: with"
        " --box-rule auto the installed one of these weights, or one learned from the first images, if it is stable",
        "Localization",
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_rule(cls, values: Any) -> Any:
        rule = values.get("box_rule", "auto") if isinstance(values, dict) else "auto"
        if rule == "auto":
            return values
        thresholds = HEURISTIC_THRESHOLDS if rule == "heuristic" else (PAPER_THRESHOLD,)
        return {"threshold": thresholds, "min_prob": 0.0, **values}

    @model_validator(mode="after")
    def _check_thresholds(self) -> Self:
        given = f"--threshold {','.join(map(str, self.threshold))}"
        if len(set(self.threshold)) < len(self.threshold):
            raise ValueError(f"{given}: allowed: each value once")
        if self.box_rule == "heuristic" and len(self.threshold) != len(HEURISTIC_THRESHOLDS):
            raise ValueError(f"{given}: allowed with --box-rule heuristic: two values, of a loose and a tight box")
        if self.box_rule == "heuristic" and self.min_prob:
            raise ValueError(f"--min-prob {self.min_prob:g}: allowed with --box-rule heuristic: 0")
        return self
