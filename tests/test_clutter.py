"""Cluttered scenes: the box is what is seen of the labelled object, and backgrounds hint as often as asked."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.images.synthetic.backgrounds import draw_background
from pipeline.images.synthetic.objects import draw_object, mask_of, object_colors, placed, posed
from tests.benchmarks.study import clutter
from tests.benchmarks.study.clutter import CLASSES, LEAST_SEEN, OTHERS, STYLES, extent_of_mask, render_clutter


def test_the_same_seed_gives_the_same_scene() -> None:
    one, other = (render_clutter(np.random.default_rng((3, 7)), 4, 64, 0.5) for _ in range(2))
    assert (one.pixels == other.pixels).all()
    assert (one.box_xyxy == other.box_xyxy).all()
    assert one[3:] == other[3:]


@settings(max_examples=25)
@given(st.integers(0, 9), st.integers(0, 2**31), st.integers(48, 120))
def test_a_scene_has_its_size_its_label_and_smaller_objects_of_other_classes(label: int, seed: int, side: int) -> None:
    scene = render_clutter(np.random.default_rng(seed), label, side, 0.5)
    assert (scene.pixels.shape, scene.pixels.dtype, scene.label) == ((side, side, 3), np.uint8, label)
    assert OTHERS[0] <= len(scene.others) <= OTHERS[1]
    assert label not in scene.others
    assert len(set(scene.others)) == len(scene.others)
    x0, y0, x1, y1 = scene.box_xyxy
    assert 0 <= x0 < x1 <= side
    assert 0 <= y0 < y1 <= side


@pytest.mark.parametrize("seed", range(30))
def test_the_box_is_the_extent_of_the_pixels_that_still_show_the_labelled_object(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[list, np.ndarray]] = []

    def drawing(rng: np.random.Generator, pixels: np.ndarray, parts: list, colors: list) -> object:
        before = pixels.copy()
        box = draw_object(rng, pixels, parts, colors)
        drawn.append((parts, (before != pixels).any(axis=2)))
        return box

    monkeypatch.setattr(clutter, "draw_object", drawing)
    scene = render_clutter(np.random.default_rng(seed), seed % 10, 96, 0.0)
    masks = [mask_of(parts, (192, 192)) for parts, _ in drawn]
    for mask, (_, changed) in zip(masks, drawn, strict=True):
        assert not (changed & ~mask).any()  # what is drawn lies in the mask
    # The labelled object is the longest of all; what was drawn after it covers it.
    longest = [max(np.ptp(np.flatnonzero(mask.any(axis=axis))) for axis in (0, 1)) for mask in masks]
    main = int(np.argmax(longest))
    seen = masks[main].copy()
    for over in masks[main + 1 :]:
        seen &= ~over
    assert seen.sum() >= LEAST_SEEN * masks[main].sum()
    x, y, w, h = cv2.boundingRect(seen.astype(np.uint8))
    assert (scene.box_xyxy * 2).tolist() == [x, y, x + w, y + h]


def test_some_scenes_cover_their_object_and_some_don_t(monkeypatch: pytest.MonkeyPatch) -> None:
    places = []
    for seed in range(60):
        drawn: list[list] = []
        monkeypatch.setattr(clutter, "draw_object", lambda rng, pixels, parts, colors, kept=drawn: kept.append(parts))
        render_clutter(np.random.default_rng(seed), seed % 10, 48, 0.0)
        masks = [mask_of(parts, (96, 96)) for parts in drawn]
        main = int(np.argmax([mask.sum() for mask in masks]))
        places.append(any((masks[main] & over).any() for over in masks[main + 1 :]))
    assert 0.1 < np.mean(places) < 0.9


@pytest.mark.parametrize(("correlation", "expected"), [(0.0, 0.1), (0.8, 0.82), (1.0, 1.0)])
def test_a_background_is_the_class_s_own_as_often_as_asked(
    correlation: float, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clutter, "draw_background", lambda rng, size_hw, style: np.zeros((*size_hw, 3), np.uint8))
    scenes = [render_clutter(np.random.default_rng(seed), seed % 10, 48, correlation) for seed in range(300)]
    share = np.mean([scene.style == scene.label for scene in scenes])
    assert abs(share - expected) <= 3 * np.sqrt(expected * (1 - expected) / len(scenes))


def test_each_class_has_a_look_of_its_own_that_tints_the_background() -> None:
    assert len(set(STYLES)) == len(CLASSES) == 10
    red, cyan = STYLES[0], STYLES[5]
    assert (red.hue, cyan.hue) == (0.0, 0.5)
    for style, brightest in ((red, 0), (cyan, 1)):
        mean = np.mean(
            [draw_background(np.random.default_rng(i), (64, 64), style).mean(axis=(0, 1)) for i in range(20)], 0
        )
        assert mean[brightest] > mean[2 if brightest == 0 else 0] * 1.15


def test_the_extent_of_a_mask_is_half_open() -> None:
    mask = np.zeros((5, 7), bool)
    mask[1, 2] = mask[3, 5] = True
    assert extent_of_mask(mask).tolist() == [2, 1, 6, 4]
    with pytest.raises(ValueError, match="empty mask"):
        extent_of_mask(np.zeros((2, 2), bool))


def test_a_picture_too_small_to_tell_anything_is_refused() -> None:
    with pytest.raises(ValueError, match="48 or more"):
        render_clutter(np.random.default_rng(0), 0, 47, 0.5)


def test_the_mask_of_an_object_is_what_its_drawing_changes() -> None:
    rng = np.random.default_rng(5)
    pixels = np.zeros((120, 120, 3), np.uint8)
    parts = placed(rng, posed(rng, clutter.PARTS[3], (120, 120), (0.5, 0.6)), (120, 120))
    box = draw_object(rng, pixels, parts, [np.full(3, 250.0)] * 3)
    mask = mask_of(parts, (120, 120))
    assert ((pixels > 0).any(axis=2) == mask).all()
    assert extent_of_mask(mask).tolist() == list(box)
    assert object_colors(rng, pixels)[0].shape == (3,)
