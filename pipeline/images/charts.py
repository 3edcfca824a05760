"""Line charts of shares as PNG: white ground, light grid, one colour a line, the legend beside the lines."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 760, 420
COLOURS = ("#2563eb", "#f59e0b", "#10b981", "#dc2626", "#7c3aed", "#0891b2", "#4b5563")
_INK, _GRID, _MUTED = "#111827", "#e5e7eb", "#6b7280"
_PLAIN = str.maketrans({"≥": ">=", "–": "-"})
"""Signs that Pillow's own font has not."""
_FINE = 3
"""Drawn so much larger and scaled down: smooth edges."""
_LEFT, _TOP, _BOTTOM, _LEGEND = 58, 72, 50, 240
"""Room around the lines, in pixels; the legend's is on the right."""


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]
    """Of x and y in [0, 1]."""
    marked: tuple[float, float] | None = None
    """A point to mark."""


def chart_png(title: str, x_name: str, y_name: str, lines: Sequence[Line]) -> bytes:
    """Return a chart of WIDTH×HEIGHT pixels whose axes both go from 0 to 1."""
    image = Image.new("RGB", (WIDTH * _FINE, HEIGHT * _FINE), "white")
    chart = _Chart(ImageDraw.Draw(image))
    chart.axes(title, x_name, y_name)
    for row, line in enumerate(lines):
        chart.line(line, COLOURS[row % len(COLOURS)], row)
    buffer = io.BytesIO()
    image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


class _Chart:
    """Draws in pixels of the chart, times _FINE."""

    def __init__(self, draw: ImageDraw.ImageDraw) -> None:
        self.draw = draw
        self.right = WIDTH - _LEGEND

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return the pixel of a point in [0, 1]²."""
        return (
            (_LEFT + x * (self.right - _LEFT)) * _FINE,
            (HEIGHT - _BOTTOM - y * (HEIGHT - _TOP - _BOTTOM)) * _FINE,
        )

    def text(self, at: tuple[float, float], words: str, anchor: str, size: int = 13, colour: str = _INK) -> None:
        """Write ``words`` at a pixel; ``anchor`` as Pillow has it."""
        font = ImageFont.load_default(size * _FINE)
        self.draw.text(at, words.translate(_PLAIN), fill=colour, font=font, anchor=anchor)

    def axes(self, title: str, x_name: str, y_name: str) -> None:
        """Draw grid, ticks and names."""
        gap = 8 * _FINE
        for tick in np.linspace(0, 1, 6).tolist():
            for start, end in (((0, tick), (1, tick)), ((tick, 0), (tick, 1))):
                self.draw.line([self.place(*start), self.place(*end)], fill=_GRID, width=_FINE)
            x, y = self.place(tick, 0)
            self.text((x, y + gap), f"{tick:.1f}", "ma", 12, _MUTED)
            x, y = self.place(0, tick)
            self.text((x - gap, y), f"{tick:.1f}", "rm", 12, _MUTED)
        self.draw.line([self.place(0, 0), self.place(1, 0)], fill=_MUTED, width=_FINE)
        self.text((12 * _FINE, 12 * _FINE), title, "la", 15)
        self.text((self.place(0.5, 0)[0], (HEIGHT - 6) * _FINE), x_name, "md", 13, _MUTED)
        self.text((12 * _FINE, self.place(0, 1)[1] - 12 * _FINE), y_name, "ld", 13, _MUTED)

    def disc(self, at: tuple[float, float], radius_px: int, colour: str) -> None:
        """Draw a disc around a point in [0, 1]²."""
        (x, y), radius = self.place(*at), radius_px * _FINE
        self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)

    def line(self, line: Line, colour: str, row: int) -> None:
        """Draw a line, its mark and its entry in the legend; a line of one point is a disc smaller than a mark."""
        self.draw.line([self.place(*point) for point in line.points], fill=colour, width=2 * _FINE, joint="curve")
        if len(line.points) == 1:
            self.disc(line.points[0], 3, colour)
        if line.marked:
            self.disc(line.marked, 4, colour)
        x, y = (self.right + 16) * _FINE, (_TOP + 10 + 24 * row) * _FINE
        self.draw.line([(x, y), (x + 20 * _FINE, y)], fill=colour, width=3 * _FINE)
        self.text((x + 28 * _FINE, y), line.name, "lm", 12)
