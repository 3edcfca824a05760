"""What ``camlake evaluate`` finds out: figures with intervals and baselines, as table rows and as JSON."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

TITLES = {
    "top1_accuracy": "top-1 accuracy",
    "top5_accuracy": "top-5 accuracy",
    "gt_known": "GT-known",
    "top1_localization": "top-1 localization",
    "top5_localization": "top-5 localization",
    "mean_iou": "mean IoU",
    "max_box_acc": "MaxBoxAcc",
    "max_box_acc_v2": "MaxBoxAccV2",
    "max_box_acc_v2_at_0.3": "MaxBoxAccV2, IoU ≥ 0.3",
    "max_box_acc_v2_at_0.5": "MaxBoxAccV2, IoU ≥ 0.5",
    "max_box_acc_v2_at_0.7": "MaxBoxAccV2, IoU ≥ 0.7",
    "pointing_game": "pointing game",
}
_MARKUP = str.maketrans({sign: "\\" + sign for sign in "\\`*_[]|"})


@dataclass(frozen=True)
class Figure:
    """One score in [0, 1] with its 95 % bootstrap interval, and what two boxes that ignore the image would score."""

    metric: str
    threshold: float | None
    """Where the box was cut: the share of the maximum as stored, or the best one of the sweep over min–max maps."""
    value: float
    low: float
    high: float
    full_image: float | None = None
    central_70: float | None = None


@dataclass(frozen=True)
class ClassScore:
    """The scores of one class over its pairs; the threshold of ``max_box_acc`` is the best one over all classes."""

    class_name: str
    pairs: int
    top1_accuracy: float
    gt_known: float | None = None
    mean_iou: float | None = None
    max_box_acc: float | None = None


@dataclass(frozen=True)
class Scores:
    """All that ``evaluate`` found out."""

    model: str
    iou_convention: Literal["half-open", "inclusive"]
    images: int
    """Annotated images that the truth knows."""
    pairs: int
    """Their pairs of image and class."""
    missing_images: int
    """Images of the truth that the output does not have."""
    pairs_without_rows: int
    """Pairs whose class has neither map nor box in the output."""
    figures: tuple[Figure, ...]
    curve: tuple[tuple[float, float], ...]
    """(threshold, accuracy) of MaxBoxAcc; empty without heatmaps."""
    classes: tuple[ClassScore, ...]
    notes: tuple[str, ...]
    """Which figures are left out and why, and what to know about the others."""

    def figure(self, metric: str, threshold: float | None = None) -> Figure:
        """Return the figure of ``metric``, at ``threshold`` where it has several; raises KeyError where none is."""
        for figure in self.figures:
            if figure.metric == metric and threshold in {None, figure.threshold}:
                return figure
        raise KeyError(metric)

    def rows(self) -> list[dict[str, str | float]]:
        """Return the figures as the rows of a table, keyed by column; an empty text where there is nothing to say."""
        return [
            {
                "metric": TITLES[figure.metric],
                "threshold": _text(figure.threshold, 2),
                "value": round(figure.value, 4),
                "95 % interval": f"{_text(figure.low, 3)} – {_text(figure.high, 3)}",
                "full image": _text(figure.full_image, 3),
                "central 70 %": _text(figure.central_70, 3),
            }
            for figure in self.figures
        ]

    def markdown(self) -> str:
        """Return the figures, the notes and the scores of each class as a Markdown page."""
        counted = f"{self.images} images, {self.pairs} pairs of image and class, IoU {self.iou_convention}"
        classes: list[dict[str, str | float]] = [
            {
                "class": scores.class_name,
                "pairs": scores.pairs,
                "top-1 accuracy": _text(scores.top1_accuracy, 3),
                "GT-known": _text(scores.gt_known, 3),
                "mean IoU": _text(scores.mean_iou, 3),
                "MaxBoxAcc": _text(scores.max_box_acc, 3),
            }
            for scores in self.classes
        ]
        notes = "".join(f"- {note}\n" for note in self.notes)
        parts = [f"# {_cell(self.model)}\n", f"{counted}\n", _markdown_table(self.rows()), notes]
        return "\n".join([*parts, "## Classes\n", _markdown_table(classes)])

    def document(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return asdict(self)


def _text(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _cell(value: str | float) -> str:
    """Return a value that stays one cell of a table and no markup, whatever it holds."""
    text = f"{value:.3f}" if isinstance(value, float) else " ".join(str(value).split())
    return html.escape(text, quote=False).translate(_MARKUP)


def _markdown_table(rows: Sequence[Mapping[str, str | float]]) -> str:
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([_cell(row[name]) for name in columns] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
