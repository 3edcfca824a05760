"""The options of every job that cuts boxes from maps."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from schemas.config import COMMA_SEPARATED, StorageConfig, option

BoxRuleName = Literal["auto", "paper", "heuristic", "all-components"]
Combination = Literal["sumprod", "product", "sum"]
"""How a class map N and a figure/ground map P, both in [0, 1], become one: (N + P) / 2 + N·P, N·P, or (N + P) / 2."""

AUTO_THRESHOLD = 0.36
"""Where ``--box-rule auto`` cuts a map scaled to [0, 1], plain or fused, unless a network's file says better.

Measured with MobileNetV2 and SqueezeNet on photographs of ImageNet and with fused maps of three networks on others.
"""
RIGHT_SHARE = 0.7
"""Share of boxes of a true class that have an IoU of 0.5 or more, of networks for which nobody measured it."""
HEURISTIC_THRESHOLDS = (0.2, 0.5)
"""Thresholds of the loose box, as in the paper, and of the tight box, for which the paper names none."""
NO_CUT = (0.0,)
"""The thresholds of boxes that a box head predicts and that are cut from no map."""
HEURISTIC_CLASSES = 3
"""The heuristic's five boxes are of this many classes."""


class BoxConfig(StorageConfig):
    """How boxes are cut from maps."""

    threshold: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], COMMA_SEPARATED] = option(
        (0.2,),
        "share of the map's maximum that cuts the foreground; several, comma-separated, allowed; with --box-rule"
        f" heuristic two, by default {','.join(map(str, HEURISTIC_THRESHOLDS))}",
        "Localization",
        min_length=1,
    )
    box_rule: BoxRuleName = option(
        "paper",
        "paper: the largest connected component's box at each threshold; heuristic: its five guesses an image, a tight"
        " and a loose box of the first two classes and a loose one of the third; all-components: a box for each",
        "Localization",
    )
    min_area: float = option(0.0, "leave out boxes under this share of the image's area", "Localization", ge=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _thresholds_of_the_heuristic(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("box_rule") == "heuristic":
            return {"threshold": HEURISTIC_THRESHOLDS, **values}
        return values

    @model_validator(mode="after")
    def _check_thresholds(self) -> Self:
        given = f"--threshold {','.join(map(str, self.threshold))}"
        if len(set(self.threshold)) < len(self.threshold):
            raise ValueError(f"{given}: allowed: each value once")
        if self.box_rule == "heuristic" and len(self.threshold) != len(HEURISTIC_THRESHOLDS):
            raise ValueError(f"{given}: allowed with --box-rule heuristic: two values, of a loose and a tight box")
        return self
