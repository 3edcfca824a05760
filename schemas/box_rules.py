"""How boxes are cut from maps: the options of every job that cuts some."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from schemas.config import COMMA_SEPARATED, StorageConfig, option

BoxRuleName = Literal["paper", "heuristic", "all-components"]

HEURISTIC_THRESHOLDS = (0.2, 0.5)
"""Of the loose box, the paper's own, and of the tight one, for which it names none: half of the maximum."""
NO_CUT = (0.0,)
"""The thresholds of boxes that are told, not cut from a map."""
HEURISTIC_CLASSES = 3
"""Classes that the heuristic's five boxes come from."""


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
        shown = f"--threshold {','.join(map(str, self.threshold))}"
        if len(set(self.threshold)) < len(self.threshold):
            raise ValueError(f"{shown}: allowed: each value once")
        if self.box_rule == "heuristic" and len(self.threshold) != len(HEURISTIC_THRESHOLDS):
            raise ValueError(f"{shown}: allowed with --box-rule heuristic: two values, of a loose and a tight box")
        return self
