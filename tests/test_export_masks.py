"""COCO's masks: the part of a class map that gave a box, against cv2.resize, connected components and pycocotools."""

import json

import cv2
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from pipeline.images.mask_decoding import run_length_mask
from pipeline.models.localize.box_rules import BoxRule, boxes_in_pixels, cut_maps
from pipeline.models.localize.foreground import Foreground, ForegroundCard, foreground_bytes
from pipeline.outputs.export import run_lengths
from pipeline.outputs.export.run_lengths import _component, cut_masks
from schemas.errors import StoreError
from tests.export_lake import HEAT, Told, export, make_lake, write_pictures
from tests.fake_lake import MODEL

W, H = 64, 48
CUT = (1.25 * W / 3, (1.5 - 0.5 / 1.2) * H / 2, W, H)
"""The box of HEAT at half of its maximum; tests/test_rebox.py derives it."""


@pytest.fixture
def lake(tmp_path):
    write_pictures(tmp_path / "in", {"a.jpg": (W, H)})
    return make_lake(tmp_path / "labels", [tmp_path / "in"], (W, H), {"a.jpg": [Told(20, CUT)]})


def test_a_mask_is_the_map_where_it_reaches_the_threshold(lake, tmp_path):
    export(lake, tmp_path / "out", "coco")
    document = json.loads((tmp_path / "out/annotations/instances_train.json").read_text())
    heat = (np.array(HEAT["heat"], np.float32) / 255 * 2 - 1).reshape(2, 3)
    expected = cv2.resize(heat, (W, H), interpolation=cv2.INTER_LINEAR) >= 0.5
    for one in document["annotations"]:
        mask = run_length_mask(one["segmentation"]["counts"], one["segmentation"]["size"])
        np.testing.assert_array_equal(mask, expected)
        assert one["area"] == expected.sum()
        assert np.abs(coco_mask.toBbox(one["segmentation"]) - one["bbox"]).max() <= 1
    export(lake, tmp_path / "without", "coco", masks=False)
    document = json.loads((tmp_path / "without/annotations/instances_train.json").read_text())
    assert {(str(one["segmentation"]), one["area"] > 0) for one in document["annotations"]} == {("[]", True)}


def test_each_component_has_its_own_mask(tmp_path):
    """Of the map 1 0 0 0.9 the two ends, and a box without a pixel's centre, which has none."""
    write_pictures(tmp_path / "in", {"a.jpg": (W, H)})
    heat = {"heat_h": 1, "heat_w": 4, "heat_min": 0.0, "heat_max": 1.0, "heat": [255, 0, 0, 230]}
    boxes = [
        Told(20, (0, 0, 16, H)),
        Told(20, (48 + 16 / 9 * 0.4, 0, W, H), component=1),
        Told(20, (30.1, 20.1, 30.2, 20.2), component=2),
    ]
    lake = make_lake(tmp_path / "labels", [tmp_path / "in"], (W, H), {"a.jpg": boxes}, heat=heat)
    export(lake, tmp_path / "out", "coco")
    document = json.loads((tmp_path / "out/annotations/instances_train.json").read_text())
    first, second, third = (one["segmentation"] for one in document["annotations"])
    np.testing.assert_array_equal(coco_mask.toBbox(first), [0, 0, 16, H])
    np.testing.assert_allclose(coco_mask.toBbox(second), [49, 0, 15, H], atol=1)
    assert third == []


@settings(max_examples=200)
@given(
    st.tuples(st.integers(1, 5), st.integers(1, 5)).flatmap(
        lambda wh: st.lists(arrays(np.uint8, wh, elements=st.integers(0, 255)), min_size=1, max_size=4)
    ),
    st.integers(1, 2000),
    st.data(),
)
def test_masks_are_the_components_of_the_resized_maps(maps, pixels, data):
    """Several boxes, each of its own small picture, cut together or apart; maps (w, h) are transposed."""
    maps = np.stack(maps).astype(np.float32) / 255
    thresholds = np.array([data.draw(st.floats(0.0625, 1, width=32)) for _ in maps], np.float32)
    sizes = [data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40))) for _ in maps]
    starts = [[data.draw(st.integers(0, side - 1)) for side in size] for size in sizes]
    ends = [
        [data.draw(st.integers(first + 1, side)) for first, side in zip(start, size, strict=True)]
        for start, size in zip(starts, sizes, strict=True)
    ]
    places = np.stack([starts, ends, sizes], axis=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_lengths, "PIXELS", pixels)
        found = list(cut_masks(maps, thresholds, places))
    for mask, cells, threshold, place in zip(found, maps, thresholds, places, strict=True):
        surface = cv2.resize(np.ascontiguousarray(cells.T), place[2].tolist(), interpolation=cv2.INTER_LINEAR)
        if np.abs(surface - threshold).min() > 1e-5:  # Else rounding decides.
            assert mask == encoded(surface >= threshold, *place[:2].tolist())


def encoded(reached, start_xy, end_xy):
    """Return the run lengths by pycocotools of the box's component; None where no pixel of the box is reached."""
    part = np.s_[start_xy[1] : end_xy[1], start_xy[0] : end_xy[0]]
    if not reached[part].any():
        return None
    expected = np.zeros(reached.shape, np.uint8)
    expected[part] = _component(reached[part].astype(np.uint8).T).T
    runs = coco_mask.encode(np.asfortranarray(expected))
    return {"size": runs["size"], "counts": runs["counts"].decode()}


def test_no_boxes_have_no_masks():
    maps, places = np.zeros((0, 2, 2), np.float32), np.zeros((0, 3, 2), np.int64)
    assert not [*cut_masks(maps, maps[:, 0, 0], places)]


def test_a_box_without_a_pixel_has_no_mask_and_leaves_the_others_theirs():
    whole, none = [[0, 0], [3, 2], [3, 2]], [[1, 1], [1, 2], [3, 2]]
    maps, thresholds = np.ones((3, 1, 1), np.float32), np.full(3, 0.5, np.float32)
    full, empty, other = cut_masks(maps, thresholds, np.array([whole, none, whole]))
    runs = coco_mask.encode(np.ones((2, 3), np.uint8, "F"))
    assert full == other == {"size": [2, 3], "counts": runs["counts"].decode()}
    assert empty is None


@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 1)))
def test_the_component_is_the_one_that_reaches_furthest(crop):
    assume(crop.any())
    _, labels, stats, _ = cv2.connectedComponentsWithStats(crop, connectivity=8)
    reach = [(int(width) * int(height), int(area), at) for at, (_, _, width, height, area) in enumerate(stats) if at]
    np.testing.assert_array_equal(_component(crop), labels == max(reach)[2])


def test_masks_of_fused_maps_fit_the_boxes_that_were_cut_from_them(tmp_path):
    write_pictures(tmp_path / "in", {"a.jpg": (W, H)})
    card = ForegroundCard("tiny", "0" * 64, "x", (3, 3))
    foreground = Foreground(card, torch.zeros(2), torch.ones(2))
    figure = {"fg_h": 3, "fg_w": 3, "fg_min": -1.0, "fg_max": 2.0, "fg": [0, 90, 30, 60, 255, 80, 10, 50, 40]}
    ground = np.array(figure["fg"], np.float32).reshape(1, 3, 3) / 255 * 3 - 1
    heat = (np.array(HEAT["heat"], np.float32) / 255 * 2 - 1).reshape(1, 1, 2, 3)
    fused = foreground.fused(torch.from_numpy(heat), torch.from_numpy(ground))[:, 0].numpy()
    rule = BoxRule("auto", (0.6,), 0.0)
    cut = cut_maps(rule, fused, np.array([0]), np.array([0]), np.array([[H, W]]))
    box = boxes_in_pixels(rule, [cut]).xyxy[0].tolist()
    lake = make_lake(
        tmp_path / "labels",
        [tmp_path / "in"],
        (W, H),
        {"": [Told(20, tuple(box), threshold=0.6)]},
        figure=figure,
        settings={"box_rule": "auto", "foreground": foreground.digest},
    )
    with pytest.raises(StoreError, match="the figure/ground direction of the maps is lost or changed; --no-masks"):
        export(lake, tmp_path / "out", "coco")
    assert not (tmp_path / "out").exists()
    place = tmp_path / f"labels/_foreground/model={MODEL}.safetensors"
    place.parent.mkdir()
    place.write_bytes(foreground_bytes(foreground))
    export(lake, tmp_path / "out", "coco")
    (found,) = json.loads((tmp_path / "out/annotations/instances_train.json").read_text())["annotations"]
    assert np.abs(coco_mask.toBbox(found["segmentation"]) - found["bbox"]).max() <= 1
    assert 0 < found["bbox"][2] < W
