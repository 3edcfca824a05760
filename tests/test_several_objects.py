"""The benchmark of rules for several objects in one picture, by hand: basins of peaks, and what counts as right."""

import numpy as np

from pipeline.arrays.figures import Pairs
from tests.benchmarks.several_rules import Cut, Maps, basins_of, components, count, of_share, peaks_of

RIDGE = np.array([[0.2, 1.0, 0.6, 0.8, 0.1]], np.float32)
"""Two peaks; the lower one is .2 above the pass between them."""
MAP = np.array([[1.0, 0.0, 0.0, 0.8], [1.0, 0.0, 0.0, 0.0]], np.float32)


def maps() -> Maps:
    """Return one picture of 40×20 pixels with two objects, and one with one."""
    pairs = Pairs(
        n_images=2,
        image=np.array([0, 1]),
        sizes_wh=np.array([[40.0, 20.0]] * 2),
        boxes=np.array([[0.0, 0, 10, 20], [30, 0, 40, 10], [0, 0, 10, 20]]),
        owner=np.array([0, 0, 1]),
        convention="half-open",
    )
    return Maps(np.stack([MAP, MAP]), pairs, ("a", "b"))


def test_a_peak_of_little_prominence_belongs_to_the_higher_one() -> None:
    (both,) = basins_of(RIDGE, 0.3)
    assert (both[0], both[1].tolist()) == (1.0, [[True] * 5])


def test_a_prominent_peak_has_the_cells_that_climb_to_it() -> None:
    first, second = basins_of(RIDGE, 0.1)
    assert (first[0], first[1].tolist()) == (1.0, [[True, True, True, False, False]])
    assert (round(second[0], 6), second[1].tolist()) == (0.8, [[False, False, False, True, True]])


def test_a_constant_map_has_one_peak() -> None:
    ((height, basin),) = basins_of(np.ones((3, 3), np.float32), 0.1)
    assert (height, basin.all()) == (1.0, True)


def test_components_are_left_out_by_the_area_of_their_boxes() -> None:
    every = components(maps(), 0.5)
    assert every.pair.tolist() == [0, 0, 1, 1]
    assert of_share(every, 1.0).pair.tolist() == [0, 1]
    assert of_share(every, 0.05).pair.tolist() == [0, 0, 1, 1]
    assert of_share(every, 0.7).pair.tolist() == [0, 1]


def test_peaks_have_boxes_of_their_own() -> None:
    found = peaks_of(maps(), [basins_of(grid, 0.5) for grid in maps().fused], 0.5)
    assert found.pair.tolist() == [0, 0, 1, 1]
    assert found.xyxy[0].tolist() == [0, 0, 10, 20], "half way between 1 and 0 lies the edge of the cell"
    assert found.xyxy[1].tolist() == [30, 0, 40, 10]


def test_an_object_counts_for_one_box_only() -> None:
    boxes = np.array([[0.0, 0, 10, 20], [0, 0, 10, 19], [30, 0, 40, 10], [20, 0, 30, 20]])
    counts = count(Cut(np.array([0, 0, 0, 1]), boxes), maps())
    assert (counts.right.tolist(), counts.boxes.tolist(), counts.objects.tolist()) == ([2, 0], [3, 1], [2, 1])
    every = np.ones(2, np.bool_)
    assert (counts.recall(every), counts.precision(every)) == (2 / 3, 2 / 4)
