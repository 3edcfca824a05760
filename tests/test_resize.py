"""Geometry: what the network sees, and how cells of its map come back to pixels of the original."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.images.resize import ResizePlan, map_to_image_xyxy

SIDES_PX = st.integers(1, 400)
PLANS = st.builds(
    ResizePlan,
    resize=st.sampled_from(["squash", "fit"]),
    image_size=st.integers(32, 96),
    map_hw=st.tuples(st.integers(1, 14), st.integers(1, 14)),
)


def picture(height_px: int, width_px: int) -> np.ndarray:
    return np.random.default_rng(height_px * 401 + width_px).integers(0, 256, (height_px, width_px, 3), np.uint8)


def test_squash_is_opencv_linear() -> None:
    pixels = picture(50, 81)
    squashed = ResizePlan("squash", 64, (7, 7)).apply(pixels)
    np.testing.assert_array_equal(squashed, cv2.resize(pixels, (64, 64), interpolation=cv2.INTER_LINEAR))
    assert ResizePlan("squash", 64, (7, 7)).valid_hw((50, 81)).tolist() == [7, 7]


@pytest.mark.parametrize(
    ("interpolation", "opencv"),
    [("nearest", cv2.INTER_NEAREST), ("bicubic", cv2.INTER_CUBIC), ("lanczos", cv2.INTER_LANCZOS4)],
)
def test_the_interpolation_is_that_of_the_weights(interpolation: str, opencv: int) -> None:
    pixels = picture(150, 181)
    squashed = ResizePlan("squash", 64, (7, 7), interpolation).apply(pixels)
    np.testing.assert_array_equal(squashed, cv2.resize(pixels, (64, 64), interpolation=opencv))
    assert (squashed != ResizePlan("squash", 64, (7, 7)).apply(pixels)).any()


@pytest.mark.parametrize(
    ("height_px", "width_px", "covered"),
    [
        (100, 100, (7, 7)),
        (100, 200, (4, 7)),  # 3.5 cells: to even
        (200, 100, (7, 4)),
        (100, 1000, (1, 7)),
        (1, 10_000, (1, 7)),
        (375, 500, (5, 7)),
    ],
)
def test_fit_covers_whole_cells(height_px: int, width_px: int, covered: tuple[int, int]) -> None:
    assert ResizePlan("fit", 224, (7, 7)).valid_hw((height_px, width_px)).tolist() == list(covered)


def test_fit_places_the_image_top_left_and_pads_with_gray() -> None:
    white = np.full((30, 60, 3), 255, np.uint8)
    square = ResizePlan("fit", 64, (8, 8)).apply(white)
    assert (square[:32] == 255).all()
    assert (square[32:] == 128).all()
    square = ResizePlan("fit", 64, (8, 8)).apply(white.transpose(1, 0, 2))
    assert (square[:, :32] == 255).all()
    assert (square[:, 32:] == 128).all()


@given(plan=PLANS, height_px=SIDES_PX, width_px=SIDES_PX)
def test_input_is_a_contiguous_square(plan: ResizePlan, height_px: int, width_px: int) -> None:
    square = plan.apply(picture(height_px, width_px))
    assert square.shape == (plan.image_size, plan.image_size, 3)
    assert square.dtype == np.uint8
    assert square.flags.c_contiguous
    rows, cols = plan.valid_hw((height_px, width_px)).tolist()
    assert 1 <= rows <= plan.map_hw[0]
    assert 1 <= cols <= plan.map_hw[1]
    assert rows == plan.map_hw[0] or cols == plan.map_hw[1]


@given(resize=st.sampled_from(["squash", "fit"]), height_px=st.integers(1, 127), width_px=st.integers(1, 127))
def test_each_input_pixel_comes_back_to_where_it_was_seen(resize: str, height_px: int, width_px: int) -> None:
    """Each pixel holds its own x and y, so an input pixel shows where it came from: there its cell must map back to."""
    plan = ResizePlan(resize, 56, (7, 7))
    rows, cols = plan.valid_hw((height_px, width_px)).tolist()
    y_px, x_px = np.mgrid[:height_px, :width_px]
    levels_per_px = 255 // max(height_px, width_px)
    coordinates = (np.stack([x_px, y_px, x_px], axis=-1) * levels_per_px).astype(np.uint8)
    seen_px = plan.apply(coordinates)[: rows * 8, : cols * 8, :2].reshape(-1, 2) / levels_per_px

    v, u = np.mgrid[: rows * 8, : cols * 8]
    centres_cells = np.stack([u, v, u, v], axis=-1).reshape(-1, 4) / 8 + 1 / 16
    centres_px = map_to_image_xyxy(centres_cells, (rows, cols), (height_px, width_px))[:, :2]
    inside_px = np.clip(centres_px - 0.5, 0, [width_px - 1, height_px - 1])
    # OpenCV's fixed-point weights are right to one grey level, which is at most half a pixel here.
    np.testing.assert_allclose(seen_px, inside_px, rtol=0, atol=1 / levels_per_px)


def test_boxes_scale_linearly() -> None:
    boxes = np.array([[0, 0, 7, 5], [1, 1, 2, 3.5], [6.5, 0, 7, 0.5]], np.float32)
    expected = [[0, 0, 700, 250], [100, 50, 200, 175], [650, 0, 700, 25]]
    np.testing.assert_allclose(map_to_image_xyxy(boxes, (5, 7), (250, 700)), expected)


def test_no_boxes() -> None:
    none = map_to_image_xyxy(np.zeros((0, 4), np.float32), (7, 7), (10, 10))
    assert none.shape == (0, 4)
    assert none.dtype == np.float64
