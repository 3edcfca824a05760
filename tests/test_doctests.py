"""The examples in the docstrings of ``import camlake`` run as they stand, and ``draw`` draws what its rows say."""

import doctest

import camlake
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.images.synthetic.scenes import write_corpus
from tests.export_lake import Told, make_lake, write_pictures

GRAY = np.full((30, 40, 3), 128, np.uint8)
BOX = {"image_id": "a", "rank": 0, "label": "cat", "xmin": 10.0, "ymin": 5.0, "xmax": 30.0, "ymax": 25.0}
HEAT = {"image_id": "a", "heat_h": 1, "heat_w": 2, "heat_min": 0.0, "heat_max": 1.0, "heat": [0, 255]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with pictures in photos/ and an output in labels/."""
    folder = tmp_path_factory.mktemp("doctests")
    write_pictures(folder / "made", {"a.png": (64, 48)})
    boxes = [Told(3, (1.0, 2.0, 33.0, 26.0)), Told(7, (5.0, 5.0, 20.0, 20.0), rank=1)]
    make_lake(folder / "labels", [folder / "made"], (64, 48), {"a.png": boxes}, labels={3: "cat", 7: "dog"})
    write_corpus(folder / "corpus", 1, seed=3, size_hw=(64, 64), broken=0)
    (folder / "corpus" / "images").rename(folder / "photos")
    return folder


@pytest.mark.parametrize("name", ["annotate", "open", "heatmap", "feature_map", "draw"])
def test_each_name_has_an_example_that_holds(folder, monkeypatch, name):
    monkeypatch.chdir(folder)
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(camlake, name), name, globs={"camlake": camlake})
    assert example.examples
    assert doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example).failed == 0


def test_a_box_is_drawn_on_its_edges():
    picture = np.asarray(camlake.draw(pd.Series(BOX), image=GRAY))
    assert picture.shape == GRAY.shape
    changed = np.argwhere((picture != 128).any(axis=2))
    assert changed.max(axis=0).tolist() == [24, 29], "xmax and ymax are exclusive"
    assert changed.min(axis=0).tolist() == [5, 10]
    assert (picture[24, 15:29] == (255, 176, 0)).all()
    assert camlake.draw(BOX, image=Image.fromarray(GRAY))._repr_png_().startswith(b"\x89PNG")


def test_a_map_colours_the_whole_picture():
    picture = np.asarray(camlake.draw(HEAT, image=GRAY)).astype(int)
    assert (picture[:, -1, 0] > picture[:, -1, 2]).all(), "the maximum is red"
    assert (picture[:, 0, 0] < picture[:, -1, 0]).all()


def test_what_cannot_be_drawn_is_said(tmp_path):
    with pytest.raises(ValueError, match="rows of 0 images"):
        camlake.draw()
    with pytest.raises(ValueError, match="rows of 2 images"):
        camlake.draw(BOX, {**BOX, "image_id": "b"}, image=GRAY)
    with pytest.raises(ValueError, match="no row has a uri"):
        camlake.draw(HEAT)
    with pytest.raises(camlake.InputError, match=r"x.tar#a.jpg can't be read.*; for an image inside a container"):
        camlake.draw({**BOX, "uri": f"{tmp_path}/x.tar#a.jpg"})
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    with pytest.raises(camlake.InputError, match="can't be drawn"):
        camlake.draw({**BOX, "uri": f"{tmp_path}/bad.jpg"})
