"""Pictures with their maps and boxes: what is drawn is what the maps and boxes say."""

import cv2
import numpy as np
import pytest

from pipeline.outputs.drawing import BOX_RGB, TRUTH_RGB, contact_sheet, draw_boxes, overlay_heat, render_picture
from tests.pages import NO_BOXES, boxes_xyxy, picture_view


def test_heat_is_bilinear_relative_to_its_maximum_and_negative_values_count_as_zero() -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    shown = overlay_heat(pixels, np.array([[-9.0, 0.0], [0.0, 5.0]], np.float32))
    table = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], cv2.COLORMAP_TURBO)[0, :, ::-1].astype(float)
    # Pixel (3, 3) lies beyond the last cell's centre: full height. (3, 2) lies a quarter of a cell from it: 3/4.
    for (y, x), share in {(0, 0): 0.0, (3, 3): 1.0, (3, 2): 0.75}.items():
        expected = table[int(share * 255)] * (0.2 + 0.5 * share)
        np.testing.assert_allclose(shown[y, x], expected, atol=0.51)


@pytest.mark.parametrize("heat", [np.zeros((2, 2)), np.full((2, 2), -1.0), np.array([[np.nan, 1.0]])])
def test_a_map_without_foreground_shows_the_gray_picture(heat: np.ndarray) -> None:
    pixels = np.full((4, 4, 3), (200, 100, 50), np.uint8)
    np.testing.assert_array_equal(
        overlay_heat(pixels, heat), np.full((4, 4, 3), round(0.299 * 200 + 0.587 * 100 + 0.114 * 50))
    )


def test_box_lines_lie_on_the_first_and_last_pixel_inside() -> None:
    canvas = draw_boxes(np.zeros((20, 30, 3), np.uint8), boxes_xyxy((5, 4, 25, 16)), NO_BOXES)
    ys, xs = np.nonzero((canvas == BOX_RGB).all(axis=2))
    assert (xs.min(), ys.min(), xs.max(), ys.max()) == (5, 4, 24, 15)
    assert (canvas[4, 5:25] == BOX_RGB).all()
    assert (canvas[4:16, 24] == BOX_RGB).all()


def test_true_boxes_are_dashed_and_lie_under_the_others() -> None:
    box = boxes_xyxy((5, 4, 25, 16))
    truth = draw_boxes(np.zeros((20, 30, 3), np.uint8), NO_BOXES, box)
    line = (truth[4, 5:25] == TRUTH_RGB).all(axis=1)
    assert line[0]
    assert 0.3 < line.mean() < 0.8
    both = draw_boxes(np.zeros((20, 30, 3), np.uint8), box, box)
    assert not (both == TRUTH_RGB).all(axis=2).any()


def test_rendering_leaves_the_picture_itself_alone() -> None:
    view = picture_view()
    before = view.pixels.copy()
    shown = render_picture(view)
    assert (shown.shape, shown.dtype) == ((80, 100, 3), np.uint8)
    np.testing.assert_array_equal(view.pixels, before)
    bare = view._replace(maps=[], truth_xyxy=NO_BOXES)
    np.testing.assert_array_equal(render_picture(bare), before)


def test_contact_sheet_holds_every_picture_twice() -> None:
    views = [
        picture_view()._replace(pixels=np.full((60, 80, 3), shade, np.uint8), truth_xyxy=NO_BOXES)
        for shade in (10, 90, 200)
    ]
    sheet = contact_sheet(views, columns=2, width_px=430)
    assert sheet.shape == (10 + 2 * (74 + 26 + 10), 430, 3)  # tiles of 200, halves of 99 × 74
    for index, shade in enumerate((10, 90, 200)):
        y, x = 10 + 37 + (index // 2) * 110, 10 + 49 + (index % 2) * 210
        assert (sheet[y, x] == shade).all()
        assert not (sheet[y, x + 101] == shade).all()
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet([], columns=2, width_px=430)
