"""Views of a picture and the canvas of their maps: hand-worked places, OpenCV as the reference for interpolation."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.models.localize.views import Canvas, View, ViewPlan, make_views, mean_of_views, plan_views

TTAS = st.sampled_from(("none", "flip", "tencrop"))


def blocks_of(cell_px: int):
    """Return the map's size of a network that makes a cell of so many pixels."""
    return lambda side: (max(1, round(side / cell_px)),) * 2


def planned(image_size: int, tta="none", scales=(1.0,), cell_px: int = 4) -> tuple[ViewPlan, Canvas]:
    map_hw = blocks_of(cell_px)
    plan = plan_views(make_views(image_size, tta, scales), map_hw)
    return plan, Canvas(plan, map_hw, "cpu")


def test_ten_crop_is_four_corners_and_the_middle_of_eight_sevenths_and_their_mirrors():
    crops = [(0, 0), (0, 32), (32, 0), (32, 32), (16, 16)]
    assert make_views(224, "tencrop") == tuple(
        View(256, top, left, 224, mirrored) for mirrored in (False, True) for top, left in crops
    )


def test_scales_multiply_the_side():
    assert make_views(224, "flip", (1.0, 1.5)) == tuple(
        View(side, 0, 0, side, mirrored) for side in (224, 336) for mirrored in (False, True)
    )
    plan, _ = planned(224, "tencrop", (0.5, 2.0), 32)
    assert (plan.side_px, plan.sides_px) == (512, (112, 448))
    assert plan.canvas_hw == (16, 16), "14 cells over 7/8 of the square"


def test_only_one_whole_picture_as_it_is_is_plain():
    assert planned(224)[0].is_single
    assert planned(224, "none", (2.0,))[0].is_single, "a single scale is another input size"
    assert not planned(224, "flip")[0].is_single
    assert not planned(224, "none", (1.0, 2.0))[0].is_single


def test_a_plain_plan_hands_its_tensors_through():
    plan, canvas = planned(16)
    pixels, maps = torch.zeros(1, 16, 16, 3, dtype=torch.uint8), torch.randn(1, 2, 4, 4)
    assert next(plan.inputs(pixels)).data_ptr() == pixels.data_ptr()
    assert canvas.lay([maps]) is maps
    assert mean_of_views([maps]) is maps


def test_crops_and_mirrors_are_the_pixels_themselves():
    plan, _ = planned(28, "tencrop")
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    parts = list(plan.inputs(pixels))
    assert torch.equal(parts[1], pixels[:, :28, 4:])
    assert torch.equal(parts[4], pixels[:, 2:30, 2:30])
    assert torch.equal(parts[7], pixels[:, 4:, :28].flip(2))


def test_smaller_scales_average_what_they_skip():
    plan, _ = planned(4, "none", (1.0, 2.0), 2)
    pixels = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    pixels[:, :4] = 200
    small, whole = plan.inputs(pixels)
    assert torch.equal(whole, pixels)
    # A row of half the size takes 1/8, 3/8, 3/8, 1/8 of four rows.
    assert small[0, :, 0, 0].tolist() == [200, 175, 25, 0]


def test_mirrored_maps_are_mirrored_back():
    _, canvas = planned(16, "flip")
    maps = torch.randn(2, 3, 4, 4)
    assert torch.equal(canvas.lay([maps, maps.flip(3)]), maps)


def test_one_row_of_two_scales_by_hand():
    # Scales 1 and 2 of a 1-cell and a 2-cell map: the canvas has two cells, the small map is constant.
    _, canvas = planned(4, "none", (1.0, 2.0), 4)
    laid = canvas.lay([torch.tensor([[[[10.0]]]]), torch.tensor([[[[0.0, 2.0], [4.0, 6.0]]]])])
    assert laid.tolist() == [[[[5, 6], [7, 8]]]]


def test_crops_overlap_by_hand():
    # Eight cells, seven of each crop. The middle one's edge runs through the centres of the outermost, which counts.
    plan, canvas = planned(28, "tencrop")
    assert plan.canvas_hw == (8, 8)
    maps = [torch.full((1, 1, 7, 7), float(index)) for index in range(10)]
    laid = canvas.lay(maps)[0, 0]
    assert laid[0, 0] == (0 + 4 + 5 + 9) / 4, "the top left crop, the middle one and their mirrors"
    assert laid[7, 7] == (3 + 4 + 8 + 9) / 4
    assert laid[0, 3] == pytest.approx((0 + 1 + 4 + 5 + 6 + 9) / 6)
    assert laid[3, 3] == sum(range(10)) / 10
    # The corners' cells are the canvas's own.
    own = torch.randn(1, 1, 7, 7)
    only = [own if index == 1 else torch.zeros_like(own) for index in range(10)]
    torch.testing.assert_close(canvas.lay(only)[0, 0, 1:7, 1:7], own[0, 0, 1:, :6] / 10)
    torch.testing.assert_close(canvas.lay(only)[0, 0, 0, 7], own[0, 0, 0, 6] / 4)


@settings(max_examples=60)
@given(
    tta=TTAS,
    scales=st.lists(st.sampled_from((0.25, 0.5, 1.0, 1.37, 2.0)), min_size=1, max_size=3, unique=True),
    side=st.integers(32, 97),
    cell_px=st.sampled_from((4, 8, 13)),
)
def test_a_constant_stays_constant_and_every_cell_is_seen(tta, scales, side, cell_px):
    plan, canvas = planned(side, tta, tuple(scales), cell_px)
    maps = [torch.full((1, 1, *blocks_of(cell_px)(view.side_px)), 3.0) for view in plan.views]
    torch.testing.assert_close(canvas.lay(maps), torch.full((1, 1, *plan.canvas_hw), 3.0))
    for part, view in zip(plan.inputs(torch.zeros(1, plan.side_px, plan.side_px, 3).byte()), plan.views, strict=True):
        assert part.shape == (1, view.side_px, view.side_px, 3)


@settings(max_examples=40)
@given(
    tta=TTAS,
    scales=st.lists(st.sampled_from((0.5, 1.0, 1.5)), min_size=1, max_size=2, unique=True),
    seed=st.integers(0, 9),
)
def test_a_map_that_is_linear_in_place_lies_where_it_was(tta, scales, seed):
    """What each view says of its own places, laid together, is the surface itself wherever no edge holds it."""
    plan, canvas = planned(56, tta, tuple(scales))
    slope_y, slope_x = np.random.default_rng(seed).normal(size=2)

    def surface(cells: int, view: View) -> torch.Tensor:
        at = (np.arange(cells) + 0.5) * view.side_px / cells
        y, x = (view.top_px + at) / view.frame_px, (view.left_px + at) / view.frame_px
        values = slope_y * y[:, None] + slope_x * x[None]
        return torch.from_numpy(values[:, ::-1].copy() if view.mirrored else values)[None, None].float()

    maps = [surface(blocks_of(4)(view.side_px)[0], view) for view in plan.views]
    laid = canvas.lay(maps)[0, 0]
    whole = surface(plan.canvas_hw[0], View(1, 0, 0, 1, mirrored=False))[0, 0]
    # A view's edges hold it constant half a cell deep: of its own cells, which are four pixels.
    edge_px = plan.side_px / 8 + plan.side_px / plan.canvas_hw[0]
    inner = int(np.ceil(edge_px * plan.canvas_hw[0] / plan.side_px))
    middle = slice(inner + 2, plan.canvas_hw[0] - inner - 2)
    torch.testing.assert_close(laid[middle, middle], whole[middle, middle], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sides", [(7, 14), (7, 11), (5, 13)])
def test_smaller_maps_are_interpolated_as_opencv_does(sides):
    small, large = sides
    views = (View(small, 0, 0, small, mirrored=False), View(large, 0, 0, large, mirrored=False))
    plan = plan_views(views, lambda side: (side, side))
    grid = np.random.default_rng(0).normal(size=(small, small)).astype(np.float32)
    laid = Canvas(plan, lambda side: (side, side), "cpu").lay(
        [torch.from_numpy(grid)[None, None], torch.zeros(1, 1, large, large)]
    )
    expected = cv2.resize(grid, (large, large), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(2 * laid[0, 0].numpy(), expected, atol=1e-5)
