"""The exact boxes against hand-worked maps, against OpenCV on upsampled maps, and against each other."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.arrays.boxes import foreground_levels, level_boxes


def boxes_of(rows, level, components="largest"):
    maps = torch.tensor([rows], dtype=torch.float32)
    return level_boxes(maps, torch.tensor([[level]]), components=components).boxes_xyxy.tolist()


def opencv_components(grid, level, scale):
    """Boxes and areas, in cells, of the 8-connected components of the upsampled map, largest first."""
    height, width = grid.shape
    up = cv2.resize(grid, (width * scale, height * scale), interpolation=cv2.INTER_LINEAR)
    _, _, stats, _ = cv2.connectedComponentsWithStats((up >= level).astype(np.uint8), connectivity=8)
    parts = stats[1:][np.argsort(-stats[1:, cv2.CC_STAT_AREA], kind="stable")]
    boxes = np.stack([parts[:, 0], parts[:, 1], parts[:, 0] + parts[:, 2], parts[:, 1] + parts[:, 3]], axis=1)
    return boxes / scale, parts[:, cv2.CC_STAT_AREA] / scale**2


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


def smooth_maps(n, size, seed):
    rng = np.random.default_rng(seed)
    return np.stack([cv2.GaussianBlur(rng.normal(size=(size, size)).astype(np.float32), (0, 0), 1.0) for _ in range(n)])


class TestAgainstOpenCV:
    @pytest.mark.parametrize("size", [7, 14])
    def test_largest_box_is_the_limit_of_upsampling(self, size):
        """Edges agree within a pixel of the 8× upsampled map, or what parts them is thinner than it: 256× agrees."""
        maps = smooth_maps(500, size, seed=size)
        levels = foreground_levels(torch.from_numpy(maps), torch.tensor([0.2]))
        found = level_boxes(torch.from_numpy(maps), levels)
        assert found.map_index.tolist() == [i for i in range(500) if levels[i, 0] < torch.inf]

        def agrees(row, index, scale):
            expected, _ = opencv_components(maps[index], levels[index, 0].item(), scale)
            return np.abs(found.boxes_xyxy[row].numpy() - expected[0]).max() <= 1.01 / 8

        rows = list(enumerate(found.map_index.tolist()))
        apart = [(row, index) for row, index in rows if not agrees(row, index, 8)]
        assert len(apart) <= 0.05 * len(rows)
        assert [index for row, index in apart if not agrees(row, index, 256)] == []

    def test_boxes_converge_as_the_upsampling_grows(self):
        maps = smooth_maps(60, 7, seed=1)
        levels = foreground_levels(torch.from_numpy(maps), torch.tensor([0.4]))
        found = level_boxes(torch.from_numpy(maps), levels, components="all")
        for index in set(found.map_index.tolist()):
            exact = found.boxes_xyxy[found.map_index == index].numpy()
            expected, areas = opencv_components(maps[index], levels[index, 0].item(), 128)
            large = areas > 0.05
            if len(exact) != len(expected) or np.any(np.abs(np.diff(areas)) < 0.05):
                continue  # a bridge thinner than a pixel, or a tie
            assert np.abs(exact[large] - expected[large]).max() < 0.05

    @settings(max_examples=150, deadline=None)
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

    @settings(max_examples=60, deadline=None)
    @given(hnp.arrays(np.float32, (4, 5), elements=st.floats(-1, 1, width=32)), st.floats(0.05, 0.9))
    def test_turning_the_map_turns_the_box(self, grid, level):
        maps = torch.from_numpy(grid)[None]
        upright = level_boxes(maps, torch.tensor([[level]]), components="all").boxes_xyxy
        turned = level_boxes(maps.mT.contiguous(), torch.tensor([[level]]), components="all").boxes_xyxy
        assert sorted(map(tuple, upright.round(decimals=4).tolist())) == sorted(
            map(tuple, turned[:, [1, 0, 3, 2]].round(decimals=4).tolist())
        )
