"""What ``camlake evaluate`` finds out: figures with intervals and baselines, as table rows and as JSON."""

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
FIGURE_COLUMNS = ("metric", "threshold", "value", "95 % interval", "full image", "central 70 %")


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
    gt_known: float | None
    mean_iou: float | None
    max_box_acc: float | None


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
    pairs_without_map: int | None
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

    def rows(self) -> list[tuple[str, ...]]:
        """Return the figures as text, one row each under FIGURE_COLUMNS."""

        def text(value: float | None, digits: int = 3) -> str:
            return "" if value is None else f"{value:.{digits}f}"

        return [
            (
                TITLES[figure.metric],
                text(figure.threshold, 2),
                text(figure.value),
                f"{text(figure.low)} – {text(figure.high)}",
                text(figure.full_image),
                text(figure.central_70),
            )
            for figure in self.figures
        ]

    def document(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return asdict(self)
