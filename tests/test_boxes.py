"""The exact boxes against hand-worked maps, against OpenCV on upsampled maps, and against each other."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.arrays.areas import component_areas, mark_saddles, patch_kinds
from pipeline.arrays.boxes import foreground_levels, level_boxes
from pipeline.models.weights.load_weights import load_weights
from pipeline.models.weights.state_fitting import load_network
from pipeline.storage.truth.truth import read_truth
from schemas.options.config import StorageConfig
from tests.benchmarks.box_scores import MapsOfPhotographs, localized, overlap_with_opencv, scores_of_both
from tests.references.opencv_boxes import agreement, component_boxes, smooth_maps, upsampled


def boxes_of(rows, level, components="largest"):
    maps = torch.tensor([rows], dtype=torch.float32)
    return level_boxes(maps, torch.tensor([[level]]), components=components).boxes_xyxy.tolist()


def opencv_components(grid, level, scale):
    """Boxes and areas, in cells, of the 8-connected components of the upsampled map, largest first."""
    boxes, areas = component_boxes(upsampled(grid, (grid.shape[0] * scale, grid.shape[1] * scale)), level)
    return boxes / scale, areas / scale**2


class TestByHand:
    def test_single_peak_crosses_halfway_to_its_neighbours(self):
        assert boxes_of([[0, 0, 0], [0, 1, 0], [0, 0, 0]], 0.5) == [[1, 1, 2, 2]]

    def test_lower_level_reaches_further(self):
        assert boxes_of([[0, 0, 0], [0, 1, 0], [0, 0, 0]], 0.25) == [[0.75, 0.75, 2.25, 2.25]]

    def test_border_cell_continues_to_the_edge(self):
        assert boxes_of([[1, 0], [0, 0]], 0.5) == [[0, 0, 1, 1]]

    def test_constant_map_is_the_whole_image_up_to_its_value(self):
        assert boxes_of([[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]], 2.0) == [[0, 0, 3, 2]]
        assert boxes_of([[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]], 2.1) == []

    def test_single_cell_map(self):
        assert boxes_of([[3.0]], 1.0) == [[0, 0, 1, 1]]

    def test_saddle_above_the_level_joins_the_diagonal(self):
        # Saddle of 1 .4 / .4 1 is (1 - .16) / (2 - .8) = .7
        rows = [[1, 0.4], [0.4, 1]]
        assert len(boxes_of(rows, 0.69, "all")) == 1
        assert len(boxes_of(rows, 0.71, "all")) == 2

    def test_other_diagonal_joins_too(self):
        rows = [[0.4, 1], [1, 0.4]]
        assert len(boxes_of(rows, 0.69, "all")) == 1
        assert len(boxes_of(rows, 0.71, "all")) == 2

    def test_largest_component_wins_and_all_are_ordered_by_area(self):
        rows = [[1, 0, 0, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1]]
        assert boxes_of(rows, 0.5) == [[3, 1, 5, 3]]
        assert boxes_of(rows, 0.5, "all") == [[3, 1, 5, 3], [0, 0, 1, 1]]

    def test_equal_areas_keep_the_order_of_rows(self):
        rows = [[0, 0, 0, 0, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]]
        assert boxes_of(rows, 0.5) == [[4, 0, 5, 1]]

    def test_snake_is_one_component(self):
        rows = [[1, 1, 1, 1, 1], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]
        assert boxes_of(rows, 0.9, "all")[0] == pytest.approx([0, 0, 5, 5])
        assert len(boxes_of(rows, 0.9, "all")) == 1

    def test_a_cell_that_four_saddles_join_is_in_one_component_with_all(self):
        rows = [[1, 0.4, 1], [0.4, 1, 0.4], [1, 0.4, 1]]
        assert boxes_of(rows, 0.69, "all") == [[0, 0, 3, 3]]
        assert len(boxes_of(rows, 0.71, "all")) == 5

    def test_a_cell_that_is_no_number_is_below_every_level(self):
        nan = float("nan")
        assert boxes_of([[0, 0, nan], [0, 1, 0], [nan, 0, 0]], 0.5, "all") == [[1, 1, 2, 2]]
        assert boxes_of([[1, nan]], 0.5) == [[0, 0, 0.5, 1]]


class TestLevels:
    def test_are_shares_of_the_maximum(self):
        levels = foreground_levels(torch.tensor([[[1.0, 5.0]]]), torch.tensor([0.2, 0.5]))
        assert levels.tolist() == [[1.0, 2.5]]

    @pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
    def test_no_positive_value_gives_no_box(self, value):
        maps = torch.full((1, 3, 3), value)
        assert len(level_boxes(maps, foreground_levels(maps, torch.tensor([0.2]))).boxes_xyxy) == 0

    def test_many_maps_and_levels_come_ordered_and_equal_one_by_one(self):
        generator = torch.Generator().manual_seed(0)
        maps = torch.rand(20, 7, 7, generator=generator)
        levels = foreground_levels(maps, torch.tensor([0.3, 0.6, 0.9]))
        together = level_boxes(maps, levels, components="all")
        keys = torch.stack([together.map_index, together.level_index, together.component], dim=1).tolist()
        assert keys == sorted(keys)
        for index in range(20):
            alone = level_boxes(maps[index : index + 1], levels[index : index + 1], components="all")
            assert torch.equal(together.boxes_xyxy[together.map_index == index], alone.boxes_xyxy)

    def test_nothing_in_gives_nothing_out(self):
        found = level_boxes(torch.empty(0, 7, 7), torch.empty(0, 1))
        assert found.boxes_xyxy.shape == (0, 4)


def neighbours(grid, y, x):
    """Cells that are joined to a foreground cell, by the definition; the level is 0."""
    height, width = grid.shape
    for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)):
        if not (0 <= y + dy < height and 0 <= x + dx < width and grid[y + dy, x + dx] >= 0):
            continue
        side, other = grid[y, x + dx], grid[y + dy, x]
        saddle_is_low = side < 0 and other < 0 and grid[y, x] * grid[y + dy, x + dx] < side * other
        if 0 in {dy, dx} or not saddle_is_low:
            yield y + dy, x + dx


def flooded(grid):
    """The sets of cells of the components, one flood after the other, in the order of their first cells."""
    left = {(y, x) for y, x in np.argwhere(grid >= 0).tolist()}
    parts = []
    for start in sorted(left):
        if start not in left:
            continue
        part, front = {start}, [start]
        while front:
            new = [cell for cell in neighbours(grid, *front.pop()) if cell not in part]
            part.update(new)
            front += new
        left -= part
        parts.append(part)
    return parts


GRIDS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(-3, 3))


class TestComponents:
    @settings(max_examples=150)
    @given(GRIDS)
    def test_are_those_of_a_flood_fill(self, grid):
        found = level_boxes(torch.from_numpy(grid)[None], torch.zeros(1, 1), components="all")
        cells = [np.array(sorted(part)) + 0.5 for part in flooded(grid)]
        assert len(found.boxes_xyxy) == len(cells)
        # A box holds its component's centres and reaches less than a cell beyond the outermost.
        slack = [
            np.concatenate([part.min(axis=0)[::-1] - box[:2], box[2:] - part.max(axis=0)[::-1]])
            for box in found.boxes_xyxy.numpy()
            for part in cells
        ]
        fits = np.array([(one >= -1e-5).all() and (one <= 1 + 1e-5).all() for one in slack])
        fits = fits.reshape(len(cells), len(cells))
        assert fits.any(axis=0).all()
        assert fits.any(axis=1).all()

    @pytest.mark.parametrize("side", [15, 31])
    def test_a_snake_of_many_turns_is_one(self, side):
        snake = torch.zeros(side, side)
        snake[::2] = 1
        snake[1::4, -1] = snake[3::4, 0] = 1
        maps = torch.stack([snake, snake.T, snake.flip(0), snake.flip(1)])
        found = level_boxes(maps, torch.full((4, 1), 0.9), components="all")
        assert found.map_index.tolist() == [0, 1, 2, 3]
        assert found.boxes_xyxy.tolist() == [[0, 0, side, side]] * 4


class TestAreas:
    @staticmethod
    def total(grid):
        """Area of all that is above 0 in a (h, w) float32 map."""
        heights = torch.from_numpy(grid)[..., None]
        inside = heights >= 0
        kinds = patch_kinds(inside)
        mark_saddles(heights, kinds)
        return component_areas(heights, kinds, inside.long(), torch.tensor([True]))[1, 0].item()

    @pytest.mark.parametrize(
        ("rows", "area"),
        [
            ([[1]], 1),
            ([[1, -1]], 0.5 + 0.5),
            ([[1, -1], [1, -1]], 2),
            # The hyperbola (1 - 2x)(1 - 2y) >= 0: a quarter at each joined corner, of the middle patch and beyond it.
            ([[1, -1], [-1, 1]], 2),
            # From the corner patch y <= (1 - 2x) / (2 - x): ∫ over x from 0 to 1/2 is 1 + 3·ln(3/4).
            ([[1, -1], [-1, -2]], 0.25 + 2 * 0.25 + 1 + 3 * np.log(3 / 4)),
        ],
    )
    def test_by_hand(self, rows, area):
        assert self.total(np.array(rows, np.float32)) == pytest.approx(area, abs=1e-12)

    @settings(max_examples=150)
    @given(
        hnp.arrays(
            np.float32,
            hnp.array_shapes(min_dims=2, max_dims=2, max_side=7),
            elements=st.floats(-1, 1, width=32).filter(lambda value: abs(value) > 1e-6),
        )
    )
    def test_above_and_below_make_the_whole_map(self, grid):
        assert self.total(grid) + self.total(-grid) == pytest.approx(grid.size, abs=1e-9)

    @settings(max_examples=60)
    @given(hnp.arrays(np.float32, (4, 5), elements=st.integers(-8, 8).map(lambda value: value + 0.5)))
    def test_are_the_limit_of_counting_pixels(self, grid):
        pixels = (upsampled(grid, (4 * 64, 5 * 64)) >= 0).mean() * 20
        assert self.total(grid) == pytest.approx(pixels, abs=0.1)


class TestAgainstOpenCV:
    @pytest.mark.parametrize(("blur", "least"), [(1.5, 0.98), (1.0, 0.96)])
    @pytest.mark.parametrize("side", [7, 14])
    def test_largest_box_is_the_limit_of_upsampling(self, side, blur, least):
        """Edges agree within a pixel of the 8× upsampled map, or what parts them is shown to be thinner than it."""
        verdicts = agreement(smooth_maps(500, side, blur, seed=1))
        assert verdicts["agrees"] >= least * verdicts.total()
        assert verdicts["unexplained"] == 0
        assert verdicts.total() > 450

    def test_boxes_converge_as_the_upsampling_grows(self):
        maps = smooth_maps(60, 7, 1.0)
        levels = foreground_levels(torch.from_numpy(maps), torch.tensor([0.4]))
        found = level_boxes(torch.from_numpy(maps), levels, components="all")
        for index in set(found.map_index.tolist()):
            exact = found.boxes_xyxy[found.map_index == index].numpy()
            expected, areas = opencv_components(maps[index], levels[index, 0].item(), 128)
            large = areas > 0.05
            if len(exact) != len(expected) or np.any(np.abs(np.diff(areas)) < 0.05):
                continue  # a bridge thinner than a pixel, or a tie
            assert np.abs(exact[large] - expected[large]).max() < 0.05

    @settings(max_examples=150)
    @given(
        hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 8)),
        st.sampled_from([0.5, 1.5, 2.5, 4.5, 7.5]),
    )
    def test_every_opencv_component_lies_in_an_exact_one(self, grid, level):
        maps = torch.from_numpy(grid)[None]
        found = level_boxes(maps, torch.tensor([[level]]), components="all").boxes_xyxy.numpy()
        expected, _ = opencv_components(grid, level, 16)
        assert (len(found) == 0) == (grid.max() < level)
        for box in expected:
            # A sampled foreground pixel is truly inside, so no sampled component reaches out of its exact one.
            inside = (found[:, :2] <= box[:2] + 1 / 16).all(axis=1) & (found[:, 2:] >= box[2:] - 1 / 16).all(axis=1)
            assert inside.any()

    @settings(max_examples=60)
    @given(hnp.arrays(np.float32, (4, 5), elements=st.floats(-1, 1, width=32)), st.floats(0.05, 0.9))
    def test_turning_the_map_turns_the_box(self, grid, level):
        maps = torch.from_numpy(grid)[None]
        upright = level_boxes(maps, torch.tensor([[level]]), components="all").boxes_xyxy
        turned = level_boxes(maps.mT.contiguous(), torch.tensor([[level]]), components="all").boxes_xyxy
        assert sorted(map(tuple, upright.round(decimals=4).tolist())) == sorted(
            map(tuple, turned[:, [1, 0, 3, 2]].round(decimals=4).tolist())
        )


@pytest.fixture(scope="module")
def photographs(shared):
    """The maps of 300 photographs."""
    real = shared / "real"
    weights = load_weights("mobilenet_v2", str(real / "weights/mobilenet_v2.safetensors"), None)
    network = load_network("mobilenet_v2", weights.state, None, preprocessing=weights.preprocessing)
    truth = read_truth(str(real / "ilsvrc300/annotations.csv"), StorageConfig())
    return localized(network, real / "ilsvrc300/images", truth)


class TestOnPhotographs:
    def test_boxes_are_opencvs_at_the_photographs_size(self, photographs: MapsOfPhotographs):
        overlap = overlap_with_opencv(photographs)
        assert overlap.shape == (1500,)
        assert overlap.mean() >= 0.995
        assert np.quantile(overlap, 0.01) >= 0.99

    def test_scores_are_those_of_the_reference_and_of_opencv(self, photographs: MapsOfPhotographs):
        scores = scores_of_both(photographs, np.array([0.3, 0.36, 0.42]))
        reference = {"GT-known": 0.587, "top-1 localization": 0.453, "MaxBoxAcc": 0.673}
        assert set(scores) == set(reference)
        for name, (exact, opencv) in scores.items():
            assert abs(exact - opencv) <= 0.005
            assert abs(exact - reference[name]) <= 0.005
