"""The configuration of ``camlake compact``."""

import re
from typing import Annotated

from pydantic import AfterValidator

from schemas.options.config import COMMA_SEPARATED, LeaseConfig, option, required

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d|w)")
_LONGEST_S = 36_500 * 86_400
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def seconds_of(duration: str) -> float:
    """Return the seconds of a text such as 12h or 1.5d; raises ValueError for another text."""
    found = _DURATION.fullmatch(duration.strip())
    if found is None and duration.strip() != "0":
        raise ValueError("allowed: a number with s, m, h, d or w behind it, such as 12h or 30d")
    return float(found[1]) * _SECONDS[found[2]] if found else 0.0


def _checked(duration: str | None) -> str | None:
    if duration is not None and seconds_of(duration) > _LONGEST_S:
        raise ValueError("allowed: up to 36500d, a hundred years")
    return duration


_Duration = AfterValidator(_checked)


class CompactConfig(LeaseConfig):
    """The options of ``camlake compact``."""

    out: str = required("An output of `camlake annotate`: any fsspec URL")
    file_mb: int = option(128, "MB that the largest file of a merged commit should have", "Options", ge=1, le=1024)
    grace: Annotated[str, _Duration] = option(
        "1d", "how long replaced files stay for readers that have the output open, such as 12h", "Options"
    )
    expire_older_than: Annotated[str | None, _Duration] = option(
        None,
        "also drop images that were annotated or rejected longer ago than this, such as 90d; those that are still in"
        " INPUT are annotated anew by the next `camlake annotate`",
        "Options",
    )
    expire_model: Annotated[tuple[str, ...], COMMA_SEPARATED] = option(
        (), "also drop all rows of these models, comma-separated", "Options"
    )

    @property
    def grace_s(self) -> float:
        """Return the grace period in seconds."""
        return seconds_of(self.grace)
