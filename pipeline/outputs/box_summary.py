"""How useful the boxes of an output are, without truth: their sizes, their classes' probabilities, their scores."""

from collections.abc import Sequence
from typing import NamedTuple

from fsspec import AbstractFileSystem

from pipeline.storage.lake.query import committed_views
from pipeline.storage.patience import PATIENCE
from schemas.errors import StoreError
from schemas.runs import DataFile, RunManifest

LARGE = 0.9
"""A box that covers more of its picture than this says nothing of where the object is."""
UNLIKELY = 0.05
"""A box of a class of a lower probability is hardly ever right."""
_TOO_MANY = 0.3
"""Share of large boxes, or of unlikely classes, that advice is given for."""


class BoxSummary(NamedTuple):
    """The boxes of some files."""

    boxes: int
    large: float
    """Share of boxes that cover more than LARGE of their picture."""
    unlikely: float
    """Share of boxes of classes of a probability under UNLIKELY."""
    median_score: float | None
    """Of box_score; None where it is null everywhere, as earlier versions wrote it."""

    @property
    def sentence(self) -> str:
        """The figures in words."""
        score = "no box_score" if self.median_score is None else f"median box_score {self.median_score:.2f}"
        return (
            f"boxes: {self.large:.0%} cover more than {LARGE:.0%} of the picture, {self.unlikely:.0%} are of classes"
            f" under {UNLIKELY:.0%}, {score}"
        )

    def advice(self, foreground: bool) -> str:
        """Return what would help, empty where nothing need; ``foreground``: whether the maps were fused already."""
        if self.large > _TOO_MANY:
            others = (
                "another --threshold or network" if foreground else "--box-rule auto, --foreground, or another network"
            )
            return f"advice: many boxes cover nearly the whole picture; `camlake rebox` or a new run may try {others}"
        if self.unlikely > _TOO_MANY:
            return (
                f"advice: many boxes are of unlikely classes; `camlake rebox --min-prob {UNLIKELY:g}` leaves them out"
            )
        return ""


def summarize_boxes(fs: AbstractFileSystem, root: str, files: Sequence[DataFile]) -> BoxSummary | None:
    """Return the summary of the boxes in ``files``, None without any; raises StoreError where one can't be read."""
    if not any(file.table == "boxes" for file in files):
        return None
    query = f"""SELECT count(*), avg((area_frac > {LARGE})::INT), avg((class_prob < {UNLIKELY})::INT), median(box_score)
        FROM boxes"""
    with committed_views(fs, root, files) as con:
        ((boxes, large, unlikely, score),) = con.execute(query).fetchall()
    return BoxSummary(boxes, large, unlikely, score) if boxes else None


def summary_lines(fs: AbstractFileSystem, root: str, manifest: RunManifest) -> list[str]:
    """Return what a user is told of the boxes of a run, in one line or two; none where the run wrote no box.

    All work of the run is done by now: that its files can't be read, after some seconds of trying, is a line too and no
    failure of the run.
    """
    try:
        with PATIENCE.patient(), PATIENCE.hurried():
            summary = summarize_boxes(fs, root, manifest.files)
    except StoreError as error:
        return [f"boxes: no summary, all is committed: {error}"]
    if summary is None:
        return []
    advice = summary.advice(manifest.settings.get("foreground", "off") != "off")
    return [summary.sentence, *([advice] if advice else [])]
