"""The recipes: their pictures show what they say, their scores are right by hand, and a small one runs as a whole."""

import json

import numpy as np
import pytest

from jobs.recipes import animals, mirror_in_lake, text_detector, visual_questions
from jobs.recipes.recipe_steps import PictureResult, RecipeConfig, RecipePictures, mean, points_in, scores
from jobs.terminal.console import Screen
from pipeline.arrays.feature_codec import pack
from pipeline.images.synthetic.reflections import render_lakes
from pipeline.images.synthetic.words import fonts, write_words
from schemas.errors import UsageError


@pytest.mark.parametrize("seed", range(6))
def test_lakes_differ_by_their_reflection_alone(seed):
    pair = render_lakes(np.random.default_rng(seed), 160)
    again = render_lakes(np.random.default_rng(seed), 160)
    assert np.array_equal(pair.mirrored, again.mirrored)
    x0, y0, x1, y1 = pair.box_xyxy
    assert 0 <= x0 < x1 <= 160
    assert 0 < y0 < y1 <= 160
    rows, columns = np.nonzero((pair.mirrored != pair.plain).any(axis=2))
    ripple = 3 * 160 / 224 + 1
    assert rows.min() >= y0
    assert rows.max() < y1
    assert columns.min() >= x0 - ripple
    assert columns.max() < x1 + ripple
    assert len(rows) > 0.1 * (x1 - x0) * (y1 - y0)


def test_lakes_are_not_drawn_too_small():
    with pytest.raises(ValueError, match="side_px 95: allowed: 96 or more"):
        render_lakes(np.random.default_rng(0), 95)


@pytest.mark.parametrize("seed", range(6))
def test_words_and_shapes_lie_in_their_boxes(seed):
    ground = np.random.default_rng(seed).integers(0, 256, (120, 180, 3), np.uint8)
    before = ground.copy()
    written = write_words(np.random.default_rng(seed), ground)
    assert np.array_equal(ground, before)
    assert len(written.boxes_xyxy) in (1, 2)
    inside = np.zeros(ground.shape[:2], bool)
    for x0, y0, x1, y1 in written.boxes_xyxy.astype(int):
        assert (written.words[y0:y1, x0:x1] != ground[y0:y1, x0:x1]).any()
        assert (written.shapes[y0:y1, x0:x1] != ground[y0:y1, x0:x1]).any()
        inside[y0:y1, x0:x1] = True
    for pixels in (written.words, written.shapes):
        assert not (pixels != ground).any(axis=2)[~inside].any()
    assert len(fonts()) > 3


def test_a_map_points_at_the_centre_of_mass_around_its_greatest_cell():
    heat = np.zeros((2, 8), np.float32)
    heat[0] = [0, 1, 4, 3, 0, 0, 0, 3]  # Above the middle, 2, are 2 and 1; the last cell is too far away.
    assert PictureResult("a.jpg", 0, 0.9, heat, (20, 80)).point_xy == pytest.approx((25 + 10 / 3, 5))
    assert PictureResult("a.jpg", 0, 0.9, np.ones((7, 7), np.float32), (70, 70)).point_xy == (10, 10)


def test_scores_by_hand(tmp_path):
    heat = np.zeros((2, 4), np.float32)
    heat[1, 2] = 1
    one = PictureResult("a.jpg", 0, 0.9, heat, (40, 80))
    assert one.point_xy == (50, 30)
    assert points_in((50, 30), np.array([[0.0, 0, 5, 5], [50, 30, 51, 31]]))
    assert not points_in((50, 30), np.array([[0.0, 0, 50, 40]]))
    pictures = RecipePictures(tmp_path, positive={"a.jpg", "b.jpg"})
    pictures.boxes = {"a.jpg": np.array([[40.0, 20, 60, 40]]), "b.jpg": np.array([[0.0, 0, 45, 25]])}
    found = [one, PictureResult("b.jpg", 0, 0.3, heat, (40, 80)), PictureResult("c.jpg", 0, 0.5, heat, (40, 80))]
    figures = scores(found, pictures, {"the centre": (0.5, 0.5)})
    assert figures["test pictures with it"] == 2
    assert figures["pointing"] == [0.5, 0.0, 1.0]
    assert figures["pointing of the centre"] == [1.0, 1.0, 1.0], "40, 20 lies in both"
    assert figures["pointing − the centre"] == [-0.5, -1.0, 0.0]
    assert figures["AUC"] == {"seed 0": 0.5}
    assert mean(np.ones(9)) == [1, 1, 1]


def test_halves_by_hand():
    maps = np.array([[[4, 4, 9, 0, 0]], [[0, 0, 9, 7, 7]]], np.float32)
    row = {"image_id": "a", "run_id": "r", "map_h": 1, "map_w": 5, "channels": 2, "bits": 4}
    codes = pack(maps.astype(np.uint8).reshape(1, 2, 5).swapaxes(1, 2).copy(), maps.mean((1, 2))[None], 4).tobytes()
    row |= {"codes": codes, "feature": maps.mean((1, 2))}
    assert visual_questions.halves_of(row) == pytest.approx([4, 0, 0, 7]), "the middle column is in neither half"


def test_answers_need_both_the_picture_and_the_question():
    rng = np.random.default_rng(0)
    features = {f"{number}.jpg": rng.normal(size=3).astype(np.float32) for number in range(60)}
    asked = [
        question
        for name, vector in features.items()
        for question in (
            visual_questions.Question(name, "what", ("what",), "cat" if vector[0] > 0 else "dog"),
            visual_questions.Question(name, "which side", ("side",), "left" if vector[1] > 0 else "right"),
        )
    ]
    found = visual_questions.answer(asked[:80], asked[80:], features)
    assert np.mean([one.answer == one.question.answer for one in found]) > 0.8
    assert {one.weight.shape for one in found} == {(3,)}
    cat = next(one.weight for one in found if one.answer == "cat")
    assert np.abs(cat).argmax() == 0


def test_words_are_written_on_rendered_scenes_too(tmp_path):
    config = {"out": str(tmp_path), "seeds": 2, "train": 10, "test": 10}
    pictures = text_detector.render(text_detector.TextDetectorConfig.resolve(config))
    assert [len(names) for names in pictures.names + pictures.tests] == [30] * 4
    assert not set(pictures.names[0]) & set(pictures.tests[0])
    assert len(pictures.positive) == 40
    assert len(list((tmp_path / "pictures").iterdir())) == 120


def test_photographs_with_animals_are_halved(tmp_path):
    truth = tmp_path / "truth.csv"
    rows = [
        "images/a.jpg,472,0,0,9,9",
        "images/b.jpg,3;900,1,2,3,4",
        "images/b.jpg,397,5,6,7,8",
        "images/c.jpg,,0,0,1,1",
    ]
    truth.write_text("\n".join(["file,imagenet_classes,xmin,ymin,xmax,ymax", *rows, "images/d.jpg,398,0,0,1,1"]))
    config = {"out": str(tmp_path / "out"), "images": str(tmp_path), "truth": str(truth), "seeds": 2}
    with pytest.raises(UsageError, match=r"^--images .*: has no a.jpg, which --truth names$"):
        animals.read(animals.AnimalsConfig.resolve(config))
    for name in "abcd":
        (tmp_path / f"{name}.jpg").touch()
    found = animals.read(animals.AnimalsConfig.resolve(config))
    assert found.positive == {"b.jpg"}
    assert found.boxes["b.jpg"].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    for fit, test in zip(found.names, found.tests, strict=True):
        assert len(fit) == len(test) == 2
        assert sorted(fit + test) == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]


def test_too_few_photographs_are_refused(tmp_path):
    config = text_detector.TextDetectorConfig.resolve({"out": str(tmp_path / "out"), "images": str(tmp_path)})
    with pytest.raises(UsageError, match=r"^--images .*: 0 JPEG and PNG files; allowed: 200 or more$"):
        text_detector.render(config)


@pytest.mark.slow
def test_a_recipe_runs_from_pictures_to_its_page(tmp_path):
    options = {"out": str(tmp_path), "model": "camlake_demo", "seeds": 2, "train": 12, "test": 10, "image_size": 96}
    mirror_in_lake.run(RecipeConfig.resolve(options), Screen())
    figures = json.loads((tmp_path / "results.json").read_text())["figures"]
    assert figures["test pictures with it"] == 20
    assert set(figures["AUC"]) == {"seed 0", "seed 1"}
    page = (tmp_path / "page.html").read_text()
    assert page.count('<img src="data:image/jpeg') == 40
