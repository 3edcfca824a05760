"""Charts: that the lines are where the numbers are."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.images.charts import COLOURS, HEIGHT, WIDTH, Line, chart_png


def coloured(png: bytes, colour: str) -> np.ndarray:
    """Rows and columns of the pixels, left of the legend, of nearly that colour."""
    with Image.open(io.BytesIO(png)) as image:
        assert image.size == (WIDTH, HEIGHT)
        pixels = np.asarray(image.convert("RGB")).astype(int)
    target = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)])
    return np.argwhere(np.abs(pixels[:, : WIDTH - 240] - target).max(axis=2) < 40)


def test_a_rising_line_rises_and_a_marked_point_is_a_disc() -> None:
    png = chart_png(
        "tiny-12345678",
        "threshold",
        "accuracy",
        [Line("up", [(0, 0), (1, 1)]), Line("flat", [(0, 0.5), (1, 0.5)], (0.5, 0.5))],
    )
    up, flat = coloured(png, COLOURS[0]), coloured(png, COLOURS[1])
    assert np.corrcoef(up.T)[0, 1] < -0.99, "rows count downwards"
    rows, columns = flat.T
    middle = (columns.min() + columns.max()) / 2
    assert np.ptp(rows[np.abs(columns - middle) < 2]) >= 6
    assert np.ptp(rows[columns < columns.min() + 50]) <= 2


def test_a_line_of_one_point_is_a_disc() -> None:
    found = coloured(chart_png("t", "x", "y", [Line("one", [(0.5, 0.25)])]), COLOURS[0])
    assert len(found) >= 20
    assert np.ptp(found, axis=0).tolist() == pytest.approx([5, 5], abs=1)
    line = coloured(chart_png("t", "x", "y", [Line("two", [(0, 0.25), (1, 0.25)])]), COLOURS[0])
    rows, columns = line.T
    assert found.mean(axis=0).tolist() == pytest.approx([rows.mean(), (columns.min() + columns.max()) / 2], abs=1)


def test_the_same_numbers_make_the_same_bytes() -> None:
    lines = [Line("a", [(0, 0), (0.5, 0.7), (1, 0.2)])]
    assert chart_png("t", "x", "y", lines) == chart_png("t", "x", "y", lines)
