"""Line charts as PNG, one panel beside the other, the legend of each below it."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

PANEL_INCHES = 5.2, 4.6
DOTS_PER_INCH = 120


@dataclass(frozen=True)
class Line:
    """One line of a panel."""

    name: str
    points: Sequence[tuple[float, float]]
    """Of x and y."""
    marked: tuple[float, float] | None = None
    """A point to mark."""


@dataclass(frozen=True)
class Panel:
    """Lines that share their axes; y begins at 0."""

    x_name: str
    y_name: str
    lines: Sequence[Line]
    x_range: tuple[float, float] = (0.0, 1.0)
    highest: float | None = 1.0
    """Where y ends; None: above the highest point."""


def chart_png(title: str, panels: Sequence[Panel]) -> bytes:
    """Return a chart; the same numbers give the same bytes."""
    # It takes half a second to import, and of a training's processes one alone draws.
    from matplotlib.figure import Figure  # noqa: PLC0415

    width, height = PANEL_INCHES
    figure = Figure((width * len(panels), height), DOTS_PER_INCH, layout="constrained")
    figure.suptitle(title, fontsize="medium")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for number, line in enumerate(panel.lines):
            # A line of one point would be invisible.
            axes.plot(*zip(*line.points, strict=True), marker="." if len(line.points) == 1 else "", label=line.name)
            if line.marked:
                axes.plot(*line.marked, marker="o", color=f"C{number}")
        axes.set(xlabel=panel.x_name, ylabel=panel.y_name, xlim=panel.x_range, ylim=(0, panel.highest))
        axes.grid(alpha=0.3)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False, fontsize="small", ncols=2)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
