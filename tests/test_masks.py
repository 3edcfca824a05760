"""Masks from COCO's polygons and run lengths, against pycocotools and by hand."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from pipeline.images.mask_decoding import SCORES, SIDE, central_counts, pixel_counts, polygon_mask, run_length_mask
from pipeline.storage.truth.masks import masks_of_coco
from schemas.errors import UsageError

MASKS = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40))


@given(MASKS)
def test_compressed_run_lengths_are_read_as_pycocotools_writes_them(mask: np.ndarray) -> None:
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert np.array_equal(run_length_mask(encoded["counts"].decode(), mask.shape), mask)


@given(MASKS)
def test_run_lengths_as_a_list_go_by_columns_and_begin_with_background(mask: np.ndarray) -> None:
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat])))
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    assert np.array_equal(run_length_mask(counts, mask.shape), mask)


def test_run_lengths_of_a_large_object_need_many_bits() -> None:
    mask = np.zeros((700, 900), np.bool_)
    mask[3:, 100:] = True
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert np.array_equal(run_length_mask(encoded["counts"].decode(), mask.shape), mask)


@pytest.mark.parametrize("counts", [[3], [2, 3], [-1, 5]])
def test_run_lengths_that_do_not_fill_the_image_are_refused(counts: list[int]) -> None:
    with pytest.raises(ValueError, match=r"run lengths of \d pixels for an image of 2×2"):
        run_length_mask(counts, (2, 2))


@settings(max_examples=60)
@given(st.integers(3, 9), st.floats(15, 40), st.floats(45, 60), st.floats(45, 60), st.integers(0, 99))
def test_polygons_are_pycocotools_up_to_their_edge(n: int, radius: float, x: float, y: float, seed: int) -> None:
    angles = np.sort(np.random.default_rng(seed).uniform(0, 2 * np.pi, n))
    polygon = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1).ravel().tolist()
    mine = polygon_mask([polygon], (110, 120))
    (encoded,) = coco_mask.frPyObjects([polygon], 110, 120)
    theirs = run_length_mask(encoded["counts"].decode(), (110, 120))
    edge = np.hypot(*np.diff(np.reshape([*polygon, *polygon[:2]], (-1, 2)), axis=0).T).sum()
    assert (mine ^ theirs).sum() <= edge + 4


def test_a_polygon_covers_the_pixels_whose_centres_it_holds() -> None:
    mask = polygon_mask([[2, 1, 5, 1, 5, 3, 2, 3], [7.4, -9, 8.6, -9, 8.6, 0.6, 7.4, 0.6]], (4, 9))
    expected = np.zeros((4, 9), np.bool_)
    expected[1:3, 2:5] = expected[0, 7:9] = True
    assert np.array_equal(mask, expected)


def test_a_triangle_by_hand() -> None:
    mask = polygon_mask([[0, 0, 4, 0, 0, 4]], (4, 5))
    assert mask.astype(int).tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]


@given(st.lists(st.tuples(st.floats(-5, 25), st.floats(-5, 25)), min_size=3, max_size=7))
@example([(17.0, 17.0), (0.0, 0.0), (0.0, 0.0)])
def test_a_polygon_and_the_rest_of_a_larger_one_make_the_larger(corners: list) -> None:
    whole = [(-50.0, -50.0), (70.0, -50.0), (70.0, 70.0), (-50.0, 70.0), (-50.0, -50.0)]
    path = [*whole, corners[0], *corners[1:], corners[0], (-50.0, -50.0)]
    inside = polygon_mask([[value for corner in corners for value in corner]], (20, 20))
    outside = polygon_mask([[value for corner in path for value in corner]], (20, 20))
    assert np.array_equal(outside, ~inside)


def test_pixels_are_counted_by_score_inside_and_outside() -> None:
    inside, crowd = np.zeros((10, 10), np.bool_), np.zeros((10, 10), np.bool_)
    inside[:, :5], crowd[5:, :] = True, True
    counts = pixel_counts(np.array([[0, 255]], np.uint8), inside, crowd)
    assert counts.shape == (2, SCORES)
    assert counts[0].sum() == SIDE * SIDE / 2
    assert counts[1].sum() == SIDE * SIDE / 4, "a crowd's pixels outside the object count nowhere"
    assert counts[0, 128:].sum() == 0
    assert counts[0, 0] == SIDE * (SIDE // 4), "constant beyond the outermost cell centres"
    assert counts[1, 255] == SIDE // 2 * (SIDE // 4)


def test_the_central_box_counts_its_own_pixels() -> None:
    whole = np.ones((5, 5), np.bool_)
    counts = central_counts(whole, ~whole, 0.5)
    assert counts.tolist() == [[SIDE * SIDE * 3 // 4, SIDE * SIDE // 4], [0, 0]]


def test_a_coco_file_gives_masks_by_image_and_category() -> None:
    square = [[0, 0, 2, 0, 2, 2, 0, 2]]
    document = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "categories": [{"id": 1, "name": "ring"}, {"id": 2, "name": "cat"}],
        "annotations": [
            {"image_id": 1, "category_id": 1, "segmentation": square},
            {"image_id": 1, "category_id": 1, "segmentation": {"size": [4, 4], "counts": [12, 4]}},
            {"image_id": 1, "category_id": 2, "bbox": [0, 0, 1, 1]},
        ],
    }
    masks = masks_of_coco(document, "truth.json")
    assert masks is not None
    found = masks.of("a.jpg", "ring", (4, 4))
    assert found is not None
    inside, crowd = found
    assert inside[:2, :2].all()
    assert inside[:, 3].all()
    assert not crowd.any()
    assert masks.of("a.jpg", "cat", (4, 4)) is None
    assert masks_of_coco({**document, "annotations": document["annotations"][2:]}, "truth.json") is None
    with pytest.raises(UsageError, match=r"'truth.json': not COCO's JSON .*: no 'categories'"):
        masks_of_coco({"images": []}, "truth.json")
