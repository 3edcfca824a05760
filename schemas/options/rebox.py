"""The configuration of ``camlake rebox``."""

from schemas.options.box_rules import BoxConfig
from schemas.options.config import option, required

MAPS_OF = "maps_of"
"""Name of the setting with the source of a run of rebox; runs of annotate do not have this setting."""


class ReboxConfig(BoxConfig):
    """The options of ``camlake rebox``."""

    labels: str = required("An output of `camlake annotate` with boxes and heatmaps: any fsspec URL")
    out: str = required("where images, boxes and quarantine go: any fsspec URL", flag=True)
    model: str | None = option(None, "which model's rows of LABELS; default: the newest run's", "Options")
    calibration: str | None = option(
        None,
        "output with boxes of the same rule that `evaluate --calibrate` was run on, for box_score; default: OUT itself,"
        " or LABELS where its boxes are of the same rule",
        "Options",
    )
