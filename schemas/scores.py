"""The results of ``camlake evaluate``: figures with intervals and baselines, as table rows and as JSON."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

TITLES = {
    "top1_accuracy": "top-1 accuracy",
    "top1_error": "top-1 classification error",
    "top5_accuracy": "top-5 accuracy",
    "top5_error": "top-5 classification error",
    "gt_known": "GT-known",
    "top1_localization": "top-1 localization",
    "top1_localization_error": "top-1 localization error",
    "top5_localization": "top-5 localization",
    "top5_localization_error": "top-5 localization error",
    "mean_iou": "mean IoU",
    "max_box_acc": "MaxBoxAcc",
    "max_box_acc_v2": "MaxBoxAccV2",
    "max_box_acc_v2_at_0.3": "MaxBoxAccV2, IoU ≥ 0.3",
    "max_box_acc_v2_at_0.5": "MaxBoxAccV2, IoU ≥ 0.5",
    "max_box_acc_v2_at_0.7": "MaxBoxAccV2, IoU ≥ 0.7",
    "pointing_game": "pointing game",
    "pxap": "PxAP",
}
CurveKind = Literal["accuracy", "precision"]
CURVE_FILES: dict[CurveKind, str] = {"accuracy": "curves.png", "precision": "precision_recall.png"}
"""Names of the files with the curves; the files are in the same folder as the page."""
_MARKUP = str.maketrans({sign: "\\" + sign for sign in "\\`*_[]|"})


@dataclass(frozen=True)
class Figure:
    """One score in [0, 1] with its 95 % bootstrap interval, and the scores of two boxes that ignore the image."""

    metric: str
    threshold: float | None
    """Threshold of the box: the stored share of the maximum, or the best threshold of a sweep over min–max maps."""
    value: float
    low: float
    high: float
    full_image: float | None = None
    central_70: float | None = None

    def row(self) -> dict[str, str | float]:
        """Return the row of a table by column; an empty text for a value that the figure does not have."""
        return {
            "metric": TITLES[self.metric],
            "threshold": _text(self.threshold, 2),
            "value": round(self.value, 4),
            "95 % interval": f"{_text(self.low, 3)} – {_text(self.high, 3)}",
            "full image": _text(self.full_image, 3),
            "central 70 %": _text(self.central_70, 3),
        }

    def as_error(self, metric: str) -> "Figure":
        """Return the figure with 1 − the scores under the name ``metric``, such as an error for an accuracy."""
        full_image, central = (None if each is None else 1 - each for each in (self.full_image, self.central_70))
        return Figure(metric, self.threshold, 1 - self.value, 1 - self.high, 1 - self.low, full_image, central)


@dataclass(frozen=True)
class Curve:
    """The points of a figure's curve."""

    metric: str
    points: tuple[tuple[float, float], ...]
    """(threshold, accuracy), ascending; for PxAP (recall, precision)."""


@dataclass(frozen=True)
class CalibrationScore:
    """The reliability of a calibrated box score on the half of the images that did not fit it."""

    boxes_fitted: int
    boxes_tested: int
    right: float
    """Share of right boxes among the tested boxes."""
    ece: float
    """Expected calibration error, ten bins of equal width."""
    ece_of_class_prob: float
    """The same error with the probability of the class as the score."""
    reliability: tuple[tuple[int, float, float], ...]
    """(boxes, mean score, share of right boxes) of each bin with boxes, by ascending score."""

    def sentence(self) -> str:
        """Return the result in one line."""
        return (
            f"Fitted on {self.boxes_fitted} boxes; on the {self.boxes_tested} boxes of the other half of the images,"
            f" {self.right:.1%} of them right, the expected calibration error is {self.ece:.3f}"
            f" (class_prob taken as the score: {self.ece_of_class_prob:.3f})."
        )

    def markdown(self) -> str:
        """Return the reliability as a Markdown table."""
        bins: list[dict[str, str | float]] = [
            {"boxes": boxes, "mean box_score": _text(score, 3), "right": _text(right, 3)}
            for boxes, score, right in self.reliability
        ]
        return _markdown_table(bins)


@dataclass(frozen=True)
class ClassScore:
    """The scores of one class over its pairs. Maps are cut at the threshold that is best for all classes together."""

    class_name: str
    pairs: int
    top1_accuracy: Figure
    gt_known: Figure | None = None
    top1_localization: Figure | None = None
    mean_iou: Figure | None = None
    max_box_acc: Figure | None = None
    max_box_acc_v2: Figure | None = None
    pointing_game: Figure | None = None
    pxap: Figure | None = None

    def rows(self) -> list[dict[str, str | float]]:
        """Return a row, as ``Scores.rows`` has them, for each figure of the class; class and pairs come first."""
        first: dict[str, str | float] = {"class": self.class_name, "pairs": self.pairs}
        return [first | figure.row() for figure in vars(self).values() if isinstance(figure, Figure)]


@dataclass(frozen=True)
class Scores:
    """All results of ``evaluate``."""

    model: str
    iou_convention: Literal["half-open", "inclusive"]
    images: int
    """Annotated images that are in the truth."""
    pairs: int
    """Pairs of such an image and a true class."""
    missing_images: int
    """Images of the truth that the output does not have."""
    pairs_without_rows: int
    """Pairs whose class has neither map nor box in the output."""
    figures: tuple[Figure, ...]
    curves: tuple[Curve, ...]
    """Curves of MaxBoxAcc and the parts of MaxBoxAccV2, and of PxAP where there are masks; empty without heatmaps."""
    classes: tuple[ClassScore, ...]
    notes: tuple[str, ...]
    """Sentences: the figures that are left out with the reason, and what the other figures count."""
    calibration: CalibrationScore | None = None
    """None where no calibration was requested."""

    def figure(self, metric: str, threshold: float | None = None) -> Figure:
        """Return the figure of ``metric``, at ``threshold`` if given; raises KeyError where there is none."""
        for figure in self.figures:
            if figure.metric == metric and threshold in {None, figure.threshold}:
                return figure
        raise KeyError(metric)

    def curves_of(self, kind: CurveKind) -> list[Curve]:
        """Return the curves of accuracy over thresholds, or of precision over recall."""
        return [curve for curve in self.curves if (curve.metric == "pxap") == (kind == "precision")]

    def rows(self) -> list[dict[str, str | float]]:
        """Return the figures as the rows of a table; see Figure.row."""
        return [figure.row() for figure in self.figures]

    def markdown(self) -> str:
        """Return the figures, the notes and the scores of each class as a Markdown page."""
        counted = f"{self.images} images, {self.pairs} pairs of image and class, IoU {self.iou_convention}"
        classes = [row for scores in self.classes for row in scores.rows()]
        notes = "".join(f"- {note}\n" for note in self.notes)
        parts = [f"# {_cell(self.model)}\n", f"{counted}\n", _markdown_table(self.rows()), notes]
        parts += [f"![{kind}]({file})\n" for kind, file in CURVE_FILES.items() if self.curves_of(kind)]
        if self.calibration:
            parts += ["## Calibrated box score\n", f"{self.calibration.sentence()}\n", self.calibration.markdown()]
        return "\n".join([*parts, "## Classes\n", _markdown_table(classes)])

    def document(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return asdict(self)


def _text(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _cell(value: str | float) -> str:
    """Return a value as the text of one table cell; characters that are markup are escaped."""
    text = f"{value:.3f}" if isinstance(value, float) else " ".join(str(value).split())
    return html.escape(text, quote=False).translate(_MARKUP)


def _markdown_table(rows: Sequence[Mapping[str, str | float]]) -> str:
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([_cell(row[name]) for name in columns] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
