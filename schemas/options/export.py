"""The configuration of ``camlake export``."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, model_validator

from schemas.options.config import COMMA_SEPARATED, StorageConfig, file_option, option, required

ImageMode = Literal["reference", "link", "copy", "embed"]
"""What an export does with the pictures."""

_SPLIT = re.compile(r"([A-Za-z0-9_]+)=([0-9]*\.?[0-9]+)")


def split_shares(parts: tuple[str, ...]) -> dict[str, float]:
    """Return the share of each split; ``parts`` are NAME=SHARE. Raises ValueError for other texts."""
    found = [_SPLIT.fullmatch(part) for part in parts]
    shares = {match[1]: float(match[2]) for match in found if match}
    if not parts or len(shares) < len(parts) or min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise ValueError(
            "allowed: NAME=SHARE,NAME=SHARE with shares over 0 that add up to 1 and different names of letters, digits"
            " and _, such as train=.8,val=.2"
        )
    return shares


def _checked(parts: tuple[str, ...]) -> tuple[str, ...]:
    split_shares(parts)
    return parts


class ExportConfig(StorageConfig):
    """The options of ``camlake export``."""

    out: str = required("An output of `camlake annotate` or `rebox`: any fsspec URL")
    dest: str = required("The folder to write, new or empty: any fsspec URL")
    to: str = required("format", flag=True)
    model: str | None = option(None, "which model's rows; needed where OUT has several", "Rows")
    classes: str | int | tuple[str | int, ...] | None = option(
        None, "only these classes: labels or class ids, comma-separated", "Rows"
    )
    min_score: float | None = option(None, "only boxes with at least this box_score", "Rows", ge=0, le=1)
    min_prob: float | None = option(None, "only boxes of classes of at least this class_prob", "Rows", ge=0, le=1)
    min_area: float = option(0.0, "only boxes of at least this share of their image's area", "Rows", ge=0, le=1)
    max_area: float = option(1.0, "only boxes of at most this share of their image's area", "Rows", ge=0, le=1)
    max_rank: int | None = option(None, "only classes up to this rank; 0: the most probable one", "Rows", ge=0)
    where: str | None = option(
        None,
        "SQL condition over the columns of boxes and images, such as \"threshold = 0.2 AND format = 'JPEG'\"",
        "Rows",
    )
    background: bool = option(False, "also images of which no box is left, as images without objects", "Rows")
    split: Annotated[tuple[str, ...], COMMA_SEPARATED, AfterValidator(_checked)] = option(
        ("train=1",), "splits and their shares; an image stays in its split for good", "Classes and splits"
    )
    rename: str | None = file_option(
        None,
        "file of new class names: CSV with the columns from and to, or YAML from: to; a class with several names in"
        " from is merged",
        "Classes and splits",
    )
    only_renamed: bool = option(False, "leave out classes that --rename does not name", "Classes and splits")
    images: ImageMode | None = option(
        None, "pictures: named by uri, linked, copied, or inside the files; default: the format's", "Pictures"
    )
    masks: bool = option(True, "coco: the part of the class map that gave each box, where OUT has heatmaps", "Pictures")
    max_bytes: int = option(100_000_000, "leave out pictures with more bytes", "Pictures", ge=1)
    max_rejected: float = option(
        0.05, "share of pictures that can't be read above which the job exits with status 3", "Pictures", ge=0, le=1
    )
    overwrite: bool = option(False, "replace an earlier export in DEST; nothing else is ever replaced", "Options")

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.min_area > self.max_area:
            raise ValueError(f"--min-area {self.min_area:g}: allowed: at most --max-area {self.max_area:g}")
        if self.only_renamed and not self.rename:
            raise ValueError("--only-renamed: allowed: together with --rename FILE")
        return self
