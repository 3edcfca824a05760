"""Charts: that the lines are where the numbers are."""

import io
import math

import matplotlib
import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from pipeline.graph.train.checkpoints import curves_png
from pipeline.images.charts import DOTS_PER_INCH, PANEL_INCHES, Line, Panel, chart_png

COLOURS = np.rint(255 * np.array(colormaps["tab10"].colors)).astype(int)


def coloured(png: bytes, colour: np.ndarray) -> np.ndarray:
    """Rows and columns of the pixels above the legend of that colour."""
    with Image.open(io.BytesIO(png)) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    return np.argwhere(np.abs(pixels[: int(0.8 * len(pixels))] - colour).max(axis=2) < 40)


def one_panel(*lines: Line) -> bytes:
    return chart_png("tiny-12345678", [Panel("threshold", "accuracy", lines)])


def test_a_rising_line_rises_and_a_marked_point_is_a_disc() -> None:
    png = one_panel(Line("up", [(0, 0), (1, 1)]), Line("flat", [(0, 0.5), (1, 0.5)], (0.75, 0.5)))
    up, flat = coloured(png, COLOURS[0]), coloured(png, COLOURS[1])
    assert np.corrcoef(up.T)[0, 1] < -0.99, "rows count downwards"
    rows, columns = flat.T
    at_mark = columns.min() + 0.75 * np.ptp(columns)
    assert np.ptp(rows[np.abs(columns - at_mark) < 2]) >= 6
    assert np.ptp(rows[columns < columns.min() + 50]) <= 4


def test_a_line_of_one_point_is_a_disc() -> None:
    found = coloured(one_panel(Line("one", [(0.5, 0.25)])), COLOURS[0])
    assert len(found) >= 20
    rows, columns = coloured(one_panel(Line("two", [(0, 0.25), (1, 0.25)])), COLOURS[0]).T
    assert found.mean(axis=0).tolist() == pytest.approx([rows.mean(), (columns.min() + columns.max()) / 2], abs=1)


def test_panels_stand_side_by_side_and_reach_their_highest_point() -> None:
    losses = Panel("epoch", "loss", [Line("loss", [(1, 40.0), (2, 10.0)])], counted=True, open_above=True)
    png = chart_png("t", [losses, Panel("epoch", "share", [Line("share", [(1, 0.1), (2, 0.9)])], counted=True)])
    with Image.open(io.BytesIO(png)) as image:
        width, height = image.size
    assert (width, height) == tuple(round(inches * DOTS_PER_INCH) for inches in (2 * PANEL_INCHES[0], PANEL_INCHES[1]))
    found = coloured(png, COLOURS[0])
    left, right = found[found[:, 1] < width / 2], found[found[:, 1] > width / 2]
    assert np.corrcoef(left.T)[0, 1] > 0.9, "falls"
    assert np.corrcoef(right.T)[0, 1] < -0.9, "rises"


def test_curves_of_a_training_leave_out_what_there_is_not() -> None:
    """Warnings are errors here: a panel without lines would warn."""
    for figures in ({"train_loss": math.nan, "train_top1": 0.5}, {"train_loss": 0.0}, {"train_loss": math.nan}):
        with Image.open(io.BytesIO(curves_png([{"epoch": 1.0} | figures], "tiny"))) as image:
            assert image.size[0] == round(PANEL_INCHES[0] * DOTS_PER_INCH), "one panel"


def test_the_same_numbers_make_the_same_bytes() -> None:
    line = Line("a", [(0, 0), (0.5, 0.7), (1, 0.2)])
    plain = one_panel(line)
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30}):
        assert one_panel(line) == plain
