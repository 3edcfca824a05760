"""Drawn scenes: the truth is what the pixels show, and a seed gives the same bytes every time."""

import csv
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, UnidentifiedImageError

from pipeline.images.synthetic import scenes
from pipeline.images.synthetic.drawings import PARTS
from pipeline.images.synthetic.objects import OBJECT_SHARE
from pipeline.images.synthetic.scenes import ASPECT_MAX, CLASSES, SIDES_PX, random_size, render_scene, write_corpus


def _rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _rows(truth: Path) -> list[dict[str, str]]:
    with truth.open(newline="", encoding="utf-8") as source:
        return list(csv.DictReader(source))


def test_ten_classes_each_a_drawing_inside_its_frame() -> None:
    assert len(CLASSES) == len(set(CLASSES)) == len(PARTS) == 10
    for name, parts in zip(CLASSES, PARTS, strict=True):
        assert len(parts) >= 3, name
        for part in parts:
            assert np.abs(part.outline).max() + part.width / 2 <= 1.05, name


@settings(max_examples=40)
@given(st.integers(0, 9), st.integers(0, 2**31), st.integers(64, 300), st.integers(64, 300))
def test_boxes_are_whole_pixels_inside_the_picture(label: int, seed: int, height: int, width: int) -> None:
    scene = render_scene(_rng(seed), label, (height, width))
    assert (scene.pixels.shape, scene.pixels.dtype) == ((height, width, 3), np.uint8)
    assert scene.label == label
    boxes = scene.boxes_xyxy
    assert boxes.dtype == np.float32
    assert boxes.shape in {(1, 4), (2, 4)}
    assert (boxes == boxes.round()).all()
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert (boxes[:, 2:] <= (width, height)).all()


@pytest.mark.parametrize("label", range(10))
def test_a_box_is_the_extent_of_the_pixels_that_the_object_changed(label: int, monkeypatch: pytest.MonkeyPatch) -> None:
    grounds: list[np.ndarray] = []
    drawn = scenes.draw_background

    def kept(rng: np.random.Generator, size_hw: tuple[int, int]) -> np.ndarray:
        pixels = drawn(rng, size_hw)
        grounds.append(pixels.copy())
        return pixels

    monkeypatch.setattr(scenes, "draw_background", kept)
    monkeypatch.setattr(scenes, "SECOND_OBJECT", 0.0)
    scene = render_scene(_rng(label), label, (200, 260))
    changed = np.abs(scene.pixels.astype(int) - grounds[0].astype(int)).max(axis=2) > 0
    ys, xs = np.nonzero(changed)
    extent = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    # A pixel of the outline may happen to have the background's color: one pixel of slack, inwards only.
    inset = (extent - scene.boxes_xyxy[0]) * (1, 1, -1, -1)
    assert (inset >= 0).all()
    assert (inset <= 1).all()


def test_object_sizes_fill_the_range() -> None:
    shares = []
    for seed in range(150):
        scene = render_scene(_rng(seed), seed % 10, (100, 140))
        x0, y0, x1, y1 = scene.boxes_xyxy[0]
        shares.append(max(x1 - x0, y1 - y0) / np.sqrt(100 * 140))
    assert min(shares) == pytest.approx(OBJECT_SHARE[0], abs=0.08)
    assert max(shares) == pytest.approx(OBJECT_SHARE[1], abs=0.08)


def test_second_objects_do_not_touch_the_first() -> None:
    pairs = [
        boxes for seed in range(200) if len(boxes := render_scene(_rng(seed), seed % 10, (96, 128)).boxes_xyxy) == 2
    ]
    assert 5 <= len(pairs) <= 40
    for one, other in pairs:
        assert one[0] > other[2] or one[2] < other[0] or one[1] > other[3] or one[3] < other[1]


def test_the_same_seed_gives_the_same_scene_and_another_seed_does_not() -> None:
    first, again, other = (render_scene(_rng(seed), 3, (80, 120)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.pixels, again.pixels)
    np.testing.assert_array_equal(first.boxes_xyxy, again.boxes_xyxy)
    assert not np.array_equal(first.pixels, other.pixels)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(IndexError):
        render_scene(_rng(0), 10, (100, 100))
    with pytest.raises(ValueError, match="sides of 48 pixels or more"):
        render_scene(_rng(0), 0, (47, 100))


def test_random_sizes_keep_their_bounds_and_vary() -> None:
    sizes = np.array([random_size(_rng(seed)) for seed in range(300)])
    assert sizes.min() >= SIDES_PX[0]
    assert sizes.max() <= SIDES_PX[1]
    ratio = sizes[:, 1] / sizes[:, 0]
    assert max(ratio.max(), 1 / ratio.min()) <= ASPECT_MAX + 0.01
    assert ratio.min() < 0.7
    assert ratio.max() > 1.4


def test_the_corpus_is_what_its_truth_says(tmp_path: Path) -> None:
    truth = write_corpus(tmp_path, 20, seed=3, size_hw=(120, 160), broken=0)
    assert truth == tmp_path / "truth.csv"
    rows = _rows(truth)
    files = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert sorted({row["file"] for row in rows}) == [f"images/{name}" for name in files]
    assert len(files) == 20
    assert Counter(Path(name).suffix for name in files) == {".jpg": 15, ".png": 5}
    assert set(Counter(name.split("-")[0] for name in files).values()) == {2}
    for row in rows:
        with Image.open(tmp_path / row["file"]) as image:
            assert image.format == {".jpg": "JPEG", ".png": "PNG"}[Path(row["file"]).suffix]
            assert image.size == (int(row["width"]), int(row["height"])) == (160, 120)
        assert CLASSES[int(row["class_id"])] == row["label"] == Path(row["file"]).name.split("-")[0]
        assert 0 <= int(row["xmin"]) < int(row["xmax"]) <= 160
        assert 0 <= int(row["ymin"]) < int(row["ymax"]) <= 120


def test_a_png_of_the_corpus_holds_the_rendered_pixels_and_boxes(tmp_path: Path) -> None:
    truth = write_corpus(tmp_path, 4, seed=3, size_hw=(90, 110), broken=0)
    scene = render_scene(_rng(3, 3), 3, (90, 110))
    stored = cv2.imread(str(tmp_path / f"images/{CLASSES[3]}-0003.png"))
    np.testing.assert_array_equal(stored[:, :, ::-1], scene.pixels)
    boxes = [
        [float(row[key]) for key in ("xmin", "ymin", "xmax", "ymax")] for row in _rows(truth) if row["class_id"] == "3"
    ]
    np.testing.assert_array_equal(boxes, scene.boxes_xyxy)


def test_the_corpus_is_reproducible_and_its_start_does_not_depend_on_its_length(tmp_path: Path) -> None:
    short = write_corpus(tmp_path / "short", 3, seed=1, broken=1)
    long = write_corpus(tmp_path / "long", 5, seed=1, broken=1)
    assert long.read_text().startswith(short.read_text())
    for path in (tmp_path / "short" / "images").iterdir():
        assert path.read_bytes() == (tmp_path / "long" / "images" / path.name).read_bytes()


def test_broken_files_are_broken_and_have_no_row(tmp_path: Path) -> None:
    truth = write_corpus(tmp_path, 1, seed=0, size_hw=(64, 64), broken=3)
    assert {row["file"] for row in _rows(truth)} == {"images/bicycle-0000.jpg"}
    truncated, text, empty = sorted((tmp_path / "images").glob("broken-*"))
    with Image.open(truncated) as image, pytest.raises(OSError, match="truncated"):
        image.load()
    with pytest.raises(UnidentifiedImageError):
        Image.open(text)
    assert text.suffix == ".png"
    assert empty.read_bytes() == b""
