"""The configuration of ``camlake rebox``."""

from typing import Self

from pydantic import model_validator

from schemas.options.box_rules import BoxConfig
from schemas.options.config import file_option, option, required

MAPS_OF = "maps_of"
"""Name of the setting with the source of a run of rebox; runs of annotate do not have this setting."""


class ReboxConfig(BoxConfig):
    """The options of ``camlake rebox``."""

    labels: str = required("An output of `camlake annotate` with boxes and heatmaps: any fsspec URL")
    out: str = required("where images, boxes and quarantine go: any fsspec URL", flag=True)
    model: str | None = option(None, "which model's rows of LABELS; default: the newest run's", "Options")
    classes: str | None = file_option(
        None,
        "CSV or Parquet that names classes for each image, or what else `annotate --classes` reads; their stored maps"
        " get boxes whatever --min-prob says; done images keep what they have",
        "Localization",
    )
    calibration: str | None = file_option(
        None,
        "output with boxes of the same rule that `evaluate --calibrate` was run on, for box_score; default: OUT itself,"
        " or LABELS where its boxes are of the same rule",
        "Options",
    )

    @model_validator(mode="after")
    def _check_classes(self) -> Self:
        if self.classes and self.box_rule == "heuristic":
            raise ValueError(
                "--classes: allowed with --box-rule auto, paper, all-components; the heuristic's five boxes are of the"
                " three most probable classes"
            )
        return self
