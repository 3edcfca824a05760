"""Draws line charts as PNG: panels side by side, with a legend below each panel."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PANEL_INCHES = 5.2, 4.6
DOTS_PER_INCH = 120
_ROOM = 1.05


@dataclass(frozen=True)
class Line:
    """One line of a panel."""

    name: str
    points: Sequence[tuple[float, float]]
    """(x, y); one point or more."""
    marked: tuple[float, float] | None = None
    """A point that gets a mark; None: no mark."""


@dataclass(frozen=True)
class Panel:
    """One or more lines on common axes, which begin at 0."""

    x_name: str
    y_name: str
    lines: Sequence[Line]
    counted: bool = False
    """Whether x is a count, in whole numbers from 1; otherwise it is a share in [0, 1]."""
    open_above: bool = False
    """Whether the y axis ends above the highest point; otherwise y is a share in [0, 1]."""


def chart_png(title: str, panels: Sequence[Panel]) -> bytes:
    """Return a chart as PNG; without panels it shows the title only. The same arguments give the same bytes."""
    # The import takes half a second, and only one process of a training draws.
    from matplotlib import style  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    width, height = PANEL_INCHES
    buffer = io.BytesIO()
    with style.context("default"):
        figure = Figure((width * max(1, len(panels)), height), DOTS_PER_INCH, layout="constrained")
        figure.suptitle(title, fontsize="medium")
        rows: Any = figure.subplots(1, len(panels), squeeze=False) if panels else [[]]
        for axes, panel in zip(rows[0], panels, strict=True):
            for number, line in enumerate(panel.lines):
                # A line of one point would be invisible.
                axes.plot(*zip(*line.points, strict=True), marker="." if len(line.points) == 1 else "", label=line.name)
                if line.marked:
                    axes.plot(*line.marked, marker="o", color=f"C{number}")
            last, highest = (max(point[axis] for line in panel.lines for point in line.points) for axis in (0, 1))
            axes.set(xlabel=panel.x_name, xlim=(0, last + 0.5 if panel.counted else 1))
            axes.set(ylabel=panel.y_name, ylim=(0, _ROOM * highest if panel.open_above and highest else 1))
            if panel.counted:
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.3)
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False, fontsize="small", ncols=2)
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
