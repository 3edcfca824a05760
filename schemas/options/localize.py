"""The configuration of ``camlake localize``."""

from typing import Self

from pydantic import model_validator

from schemas.options.annotate import Engine
from schemas.options.box_rules import HEURISTIC_CLASSES
from schemas.options.config import file_option, option, required
from schemas.options.rebox import ReboxConfig

HEAD = "head"
"""Name of the setting with the digest of the head of a run of localize."""


class LocalizeConfig(ReboxConfig):
    """The options of ``camlake localize``."""

    labels: str = required("An output of `camlake annotate` with features and feature_maps: any fsspec URL")
    out: str = required("where images, boxes, heatmaps and quarantine go: any fsspec URL", flag=True)
    head: str = required("a file of `camlake head fit`", flag=True, reads=True)
    model: str | None = option(None, "which model's rows of LABELS; default: those of the head's backbone", "Options")
    calibration: str | None = file_option(
        None,
        "output with boxes of the same head and rule that `evaluate --calibrate` was run on, for box_score; default:"
        " OUT itself",
        "Options",
    )
    topk: int = option(
        5, "maps and boxes for this many most probable classes of the head, or fewer", "Localization", ge=1, le=1000
    )

    engine: Engine = option(
        "auto",
        "localize in threads of this process (local), or in tasks on Ray; auto: Ray with --address or RAY_ADDRESS,"
        " else local",
        "Compute",
    )
    address: str | None = option(None, "a running Ray cluster; default with Ray: start one here", "Compute")

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.box_rule == "heuristic" and self.topk < HEURISTIC_CLASSES:
            raise ValueError(f"--topk {self.topk}: allowed with --box-rule heuristic: {HEURISTIC_CLASSES} or more")
        if self.engine == "local" and self.address:
            raise ValueError(f"--engine local: allowed: without --address, here {self.address!r}")
        return self
